"""Where the files of a set are: on this machine, or in a bucket.

Shards are read where they are, part by part. A folder of parquet files is
copied from its bucket once: a record alone costs the bytes of its row group,
a hundred records or more, and in a random order the next one is of another
group.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import io
import os
import pathlib
import shutil
import sys

try:
  import fcntl
except ImportError:  # Windows; there nothing is locked.
  fcntl = None

from etils import epy

from flax_resnet import bucket, storage
from flax_resnet.errors import RunError

with epy.lazy_imports():
  import tqdm

# Part of a file, and where it is: path, first byte, size and `stamp`.
Part = tuple[str, int, int, list[int]]

# Bytes that are read together of an object that is read from its beginning. It
# is faster to read a picture of 100 kB than to ask for what comes after it.
_WINDOW = 2**22
# Files that are copied at the same time.
_AT_A_TIME = 8


class LocalFiles:
  """Files of this machine."""

  in_bucket = False

  def is_file(self, path: str) -> bool:
    return os.path.isfile(path)

  def is_folder(self, path: str) -> bool:
    return os.path.isdir(path)

  def names(self, folder: str) -> list[str]:
    """Returns the names of what is in a folder."""
    return os.listdir(folder)

  def stamp(self, path: str) -> list[int]:
    """Returns what of a file changes when it is written anew."""
    return _stamp(os.stat(path))

  def open(self, path: str) -> io.BufferedReader:
    return open(path, "rb")

  def read(self, parts: Sequence[Part]) -> Iterator[bytes | None]:
    """Yields parts of files; None of a file that has changed.

    Raises:
      OSError: if one cannot be read.
    """
    for path, offset, size, stamp in parts:
      descriptor = os.open(path, os.O_RDONLY)
      try:
        unchanged = _stamp(os.fstat(descriptor)) == stamp
        yield os.pread(descriptor, size, offset) if unchanged else None
      finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> list[int]:
  return [status.st_size, status.st_mtime_ns]


class BucketFiles:
  """Objects in a bucket, by their URLs; as they were when it was first asked.

  One that is sent to another process asks the server there by a connection of
  its own, and carries no credentials.

  Args:
    url: URL of the folder or object that holds all.
  """

  in_bucket = True

  def __init__(self, url: str):
    self._url = url.rstrip("/")
    self._folders: dict[int, bucket.Folder] = {}  # By process.

  def __reduce__(self):
    return BucketFiles, (self._url,)

  @functools.cached_property
  def _objects(self) -> dict[str, tuple[int, str]]:
    return bucket.Folder(self._url).objects()

  def is_file(self, path: str) -> bool:
    return self._name(path) in self._objects

  def is_folder(self, path: str) -> bool:
    return bool(self.names(path))

  def names(self, folder: str) -> list[str]:
    """Returns the names of what is in a folder; none if there is no such."""
    below = f"{self._name(folder)}/".lstrip("/")
    found = {
      name.removeprefix(below).partition("/")[0]
      for name in self._objects
      if name and name.startswith(below)
    }
    return sorted(found)

  def stamp(self, path: str) -> list[int]:
    """Returns what of an object changes when it is written anew."""
    size, version = self._objects[self._name(path)]
    digest = hashlib.sha256(version.encode()).digest()
    return [size, int.from_bytes(digest[:8], "big", signed=True)]

  def open(self, path: str) -> io.BufferedReader:
    """Returns an object to be read from its beginning."""
    size, _ = self._objects[self._name(path)]
    raw = _RangeReader(bucket.Folder(path), size)
    return io.BufferedReader(raw, _WINDOW)

  def read(self, parts: Sequence[Part]) -> Sequence[bytes]:
    """Returns parts of objects; the `stamp` is for the caller to trust.

    Raises:
      FileNotFoundError: if an object is gone.
      RunError: if the server does not answer.
    """
    ranges = [
      (self._name(path), offset, offset + size)
      for path, offset, size, _ in parts
    ]
    try:
      return self._folder().read_ranges(ranges)
    except bucket.BucketError as error:  # In the middle of a run.
      raise RunError(f"{error}: the same command continues") from error

  def _name(self, path: str) -> str:
    return path.removeprefix(self._url).strip("/")

  def _folder(self) -> bucket.Folder:
    process = os.getpid()  # A connection does not survive a fork.
    if process not in self._folders:
      folder = bucket.Folder(self._url, bucket.RUN_PATIENCE)
      self._folders = {process: folder}
    return self._folders[process]


Files = LocalFiles | BucketFiles


def files_at(root: str) -> Files:
  """Returns the files at a path or a URL, of which the end may be a pattern."""
  if not bucket.is_url(root):
    return LocalFiles()
  before, brace, _ = root.partition("{")
  return BucketFiles(before.rpartition("/")[0] if brace else root)


def read_beside(path: str, name: str) -> bytes | None:
  """Returns the contents of a file beside another one; None if it is not there.

  Args:
    path: path or URL of the other one.
    name: name of the file.
  """
  if bucket.is_url(path):
    return bucket.Folder(path.rpartition("/")[0]).read(name)
  beside = pathlib.Path(path).with_name(name)
  return beside.read_bytes() if beside.is_file() else None


class _RangeReader(io.RawIOBase):
  """An object as a file, of which each read is a request.

  Args:
    folder: the object.
    size: its size in bytes.
  """

  def __init__(self, folder: bucket.Folder, size: int):
    self._folder, self._size, self._at = folder, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
    self._at = start[whence] + offset
    return self._at

  def readinto(self, buffer) -> int:
    end = min(self._at + len(buffer), self._size)
    if end <= self._at:
      return 0
    (data,) = self._folder.read_ranges([("", self._at, end)])
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def fetch_folder(url: str) -> pathlib.Path:
  """Returns a copy of a folder, which is kept in the user's cache folder.

  Only what has changed in the bucket is copied, and what is gone there is
  removed here; so is what was not copied to its end.

  Raises:
    ValueError: if there is no such folder, or no room for a copy.
    BucketError: if it cannot be read.
  """
  source, folder = bucket.Folder(url), bucket.kept_path(url)
  objects = {name: what for name, what in source.objects().items() if name}
  if not objects:
    raise FileNotFoundError(
      f"root is {url}, where there is no folder: give the URL of one that "
      "holds .parquet or .arrow files"
    )
  folder.parent.mkdir(parents=True, exist_ok=True)
  beside = folder.parent / f".{folder.name}"
  partial, record = (
    beside.with_name(f"{beside.name}{end}") for end in (".partial", ".json")
  )
  with _locked(beside.with_name(f"{beside.name}.lock")):
    try:
      copied = storage.read_json(record)
    except (OSError, ValueError):
      copied = {}
    for path in sorted(folder.rglob("*")):
      name = path.relative_to(folder).as_posix()
      if path.is_file() and copied.get(name) != list(objects.get(name, ())):
        path.unlink()
    missing = [name for name in objects if not (folder / name).is_file()]
    _check_room(url, folder.parent, sum(objects[name][0] for name in missing))
    with tqdm.tqdm(
      total=sum(objects[name][0] for name in missing),
      desc=url,
      unit="B",
      unit_scale=True,
      disable=not (missing and sys.stderr.isatty()),
    ) as bar:
      for start in range(0, len(missing), _AT_A_TIME):
        names = missing[start : start + _AT_A_TIME]
        source.download(names, partial)
        for name in names:
          (folder / name).parent.mkdir(parents=True, exist_ok=True)
          copied[name] = list(objects[name])
        # A file that is there is always the one that is recorded.
        storage.write_json(record, copied)
        for name in names:
          os.replace(partial / name, folder / name)
          bar.update(objects[name][0])
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def _check_room(url: str, folder: pathlib.Path, size: int) -> None:
  free = shutil.disk_usage(folder).free
  if size > free:
    raise ValueError(
      f"{url} has {size / 1e9:,.1f} GB to be copied, and {folder} has room for "
      f"{free / 1e9:,.1f}: set XDG_CACHE_HOME to a folder on a larger disk, or "
      "use tar shards, which are read where they are"
    )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Waits until no other process of this machine is in its block."""
  with path.open("a") as file:
    if fcntl is not None:
      with contextlib.suppress(OSError):  # A disk that knows no locks.
        fcntl.lockf(file, fcntl.LOCK_EX)
    yield
