"""A workdir in a bucket: a run works in a copy, which is copied up again.

The run sees a folder of this machine, in which all is as in any workdir. When
it starts, what a run needs to go on is fetched: config.json, metrics.jsonl,
summary.json and the complete checkpoints. From then on

1. a checkpoint that is complete is copied up, its marker last. Before it come
   the rows of metrics.jsonl, so that a bucket never has a checkpoint without
   the rows up to it;
2. a checkpoint that the run has removed is removed there, its marker first;
3. other files that have changed are written whole, with each checkpoint and
   every `SECONDS`; summary.json last, as it says that the run is finished.

The next checkpoint waits for the copy of the one before. So a kill at any time
costs what it costs in a folder, and the copy that was under way.
"""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
import shutil
import threading
import time

from flax_resnet import bucket, hosts, storage
from flax_resnet.bucket import BucketError
from flax_resnet.errors import InputError, reported_as, RunError
from flax_resnet.training import lease

# Time between two copies of the files that grow: rows, TensorBoard's events.
SECONDS = 60
# How often a checkpoint is written of which not all comes to be there.
_ATTEMPTS = 3
# Time between two looks for a checkpoint that is complete.
_LOOK_SECONDS = 0.5


class BucketWorkdir:
  """A workdir in a bucket.

  Attributes:
    path: folder of this process in which the run works.
    shared: whether all hosts see the same folder: each has its own copy.

  Args:
    url: URL of the workdir.
  """

  shared = False

  def __init__(self, url: str):
    self.path = bucket.local_path(url)
    self._folder = bucket.Folder(url, bucket.RUN_PATIENCE)
    self._lease = lease.Lease(self._folder)
    self._found: dict[str, int] = {}  # Sizes of the objects when it started.
    self._sent: dict[str, tuple[int, int]] = {}  # Files that are there.
    self._steps: set[int] = set()  # Checkpoints that are there.
    self._syncing = threading.Lock()
    self._ended = threading.Event()
    self._failure: Exception | None = None
    self._active = False

  def fetch(self) -> None:
    """Fetches what a run needs to go on; waits for a lease to run out.

    Raises:
      InputError: if another run holds it.
      BucketError: if it cannot be read.
    """
    hosts.on_first_host(self._lease.wait)
    shutil.rmtree(self.path, ignore_errors=True)
    self.path.mkdir(parents=True)
    self._found = self._folder.sizes()
    names = bucket.small_files(self._found)
    steps = bucket.complete_steps(self._found)
    for step in steps:
      names += bucket.files_of_step(self._found, step)
    self._folder.download(names, self.path)
    self._steps = set(steps)
    for name in bucket.small_files(self._found):
      self._sent[name] = _version(self.path / name)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other runs out, and copies what this one writes.

    Raises:
      InputError: if another run is in it, or has been since `fetch`.
      BucketError: if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
      hosts.on_first_host(lambda: stack.enter_context(self._copied()))
      yield

  @contextlib.contextmanager
  def _copied(self) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
      with reported_as("workdir"):  # Nothing of the run is lost yet.
        stack.enter_context(self._lease)
        found = self._folder.sizes()
      if _without_leases(found) != _without_leases(self._found):
        raise InputError(
          f"another run has written to {self._folder.url} meanwhile: give the "
          "command again"
        )
      self._remove_incomplete(found)
      self._active = True
      thread = threading.Thread(target=self._keep_copying, daemon=True)
      thread.start()
      try:
        yield
      except BaseException:
        self._end(thread)
        with contextlib.suppress(Exception):  # The first error is reported.
          if self._failure is None:
            self._sync(files=True)
        raise
      self._end(thread)
      self.flush()
      self._sync(files=True)

  def _end(self, thread: threading.Thread) -> None:
    self._ended.set()
    thread.join()

  def flush(self) -> None:
    """Waits until all complete checkpoints are in the bucket.

    Raises:
      BucketError: if it cannot be written.
      RunError: if another run has taken over.
    """
    if not self._active:  # Another host copies.
      return
    with self._syncing:
      if self._failure is not None:
        raise self._failure
      try:
        self._sync_locked(files=False)
      except Exception as error:
        self._failure = error  # It is not tried once more at the end.
        raise

  def on_each_copy(self, work: Callable[[], str]) -> str:
    """Calls `work` on each host, which must come to the same; returns its text.

    Raises:
      InputError: if they do not, or `work` raises it.
    """
    text = bucket.shown(work())
    hosts.check_same({f"the state of {self._folder.url}": text})
    return text

  def _keep_copying(self) -> None:
    """Copies what is new until the run ends, or until it fails."""
    due = time.monotonic()
    while not self._ended.wait(_LOOK_SECONDS):
      try:
        files = time.monotonic() >= due
        self._sync(files)
        if files:
          due = time.monotonic() + SECONDS
      except Exception as error:  # `flush` raises it where the run can end.
        self._failure = error
        return

  def _sync(self, files: bool) -> None:
    with self._syncing:
      self._sync_locked(files)

  def _sync_locked(self, files: bool) -> None:
    there = set(storage.checkpoint_steps(self.path / "checkpoints"))
    new, gone = there - self._steps, self._steps - there
    if not files and not new and not gone:
      return
    self._lease.check()
    self._copy_files()
    for step in sorted(new):
      self._copy_step(step)
    for step in sorted(gone):
      self._remove_step(step)
    self._copy_summary()

  def _copy_files(self) -> None:
    """Copies the files that have changed, and removes what is gone."""
    files = {
      path.relative_to(self.path).as_posix(): path
      for path in sorted(self.path.rglob("*"))
      if path.is_file()
    }
    names = [name for name in files if _is_copied(name)]
    # Nobody can use the others without it.
    names.sort(key=lambda name: name != "config.json")
    for name in names:
      self._copy_file(name)
    gone = [name for name in self._sent if name not in files]
    self._folder.remove(gone)
    for name in gone:
      self._sent.pop(name)

  def _copy_summary(self) -> None:
    if (self.path / "summary.json").exists():
      self._copy_file("summary.json")

  def _copy_file(self, name: str) -> None:
    path = self.path / name
    try:
      version = _version(path)
      if self._sent.get(name) == version:
        return
      data = path.read_bytes()
    except FileNotFoundError:
      return  # One that the run has replaced or removed meanwhile.
    if name == "metrics.jsonl":  # Without a row that is being written.
      data = data[: data.rfind(b"\n") + 1]
    self._folder.write(name, data)
    self._sent[name] = version

  def _copy_step(self, step: int) -> None:
    below = f"checkpoints/{step}"
    files = {
      path.relative_to(self.path).as_posix(): path.stat().st_size
      for path in (self.path / below).rglob("*")
      if path.is_file()
    }
    files.pop(f"{below}/{bucket.MARKER}", None)
    self._folder.remove(self._folder.sizes(f"{below}/"))  # Of an older try.
    found: dict[str, int] = {}
    for _ in range(_ATTEMPTS):
      differ = [name for name, size in files.items() if found.get(name) != size]
      self._folder.upload(self.path, differ)
      if (found := self._folder.sizes(f"{below}/")) == files:
        break
    else:
      raise BucketError(
        f"{self._folder.url}/{below} is not as it was written: "
        f"{len(files.items() ^ found.items())} of {len(files)} files differ"
      )
    self._lease.check()
    self._folder.write(f"{below}/{bucket.MARKER}", b"complete\n")
    self._steps.add(step)

  def _remove_step(self, step: int) -> None:
    below = f"checkpoints/{step}/"
    self._folder.remove([f"{below}{bucket.MARKER}"])
    self._folder.remove(self._folder.sizes(below))
    self._steps.discard(step)

  def _remove_incomplete(self, found: dict[str, int]) -> None:
    """Removes what a run that was killed has copied of a checkpoint."""
    steps = (name.split("/")[1] for name in found if _is_of_step(name))
    for step in {int(step) for step in steps} - self._steps:
      self._remove_step(step)


def _version(path: pathlib.Path) -> tuple[int, int]:
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns


def _is_of_step(name: str) -> bool:
  folder, _, rest = name.partition("/")
  return folder == "checkpoints" and rest.partition("/")[0].isdecimal()


def _is_copied(name: str) -> bool:
  """Whether a file is copied as it is, at any time."""
  parts = name.split("/")
  temporary = (".partial", "-checkpoint-tmp", ".lock")
  return (
    not _is_of_step(name)
    and name != "summary.json"
    and not any(word in part for word in temporary for part in parts)
  )


def _without_leases(sizes: dict[str, int]) -> dict[str, int]:
  return {
    k: v for k, v in sizes.items() if not k.startswith(f"{lease.FOLDER}/")
  }


@contextlib.contextmanager
def opened_bucket(url: str) -> Iterator[BucketWorkdir]:
  """Yields the workdir of a URL, fetched.

  Raises:
    InputError: if it cannot be used; what is raised later names the URL.
  """
  try:
    with reported_as("workdir"):
      workdir = BucketWorkdir(url)
      workdir.fetch()
    # Each has fetched for itself, while another run may have written.
    steps = storage.checkpoint_steps(workdir.path / "checkpoints")
    hosts.check_same({f"the list of checkpoints in {url}": steps})
    yield workdir
  except BrokenPipeError:
    raise  # Of whoever reads what is printed.
  except (InputError, RunError) as error:
    raise type(error)(bucket.shown(str(error))) from error
  except OSError as error:
    raise BucketError(bucket.shown(str(error))) from error
