"""The folder of a run: the config that it belongs to, and one run at a time."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import pathlib
import socket
from typing import Any, TextIO

import jax

from flax_resnet import bucket, hosts, storage
from flax_resnet.errors import InputError, listing, RunError
from flax_resnet.training.bucket_workdir import BucketWorkdir, opened_bucket
from flax_resnet.training.setup import MAY_DIFFER

try:
  import fcntl
except ImportError:  # Windows; there nothing is locked.
  fcntl = None


class LocalWorkdir:
  """A workdir that is a folder of this machine, or of a disk of a network.

  Attributes:
    path: the folder.
    shared: whether all hosts see the same one.
  """

  shared = True

  def __init__(self, path: pathlib.Path):
    self.path = path

  def locked(self) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs out of it, see `locked`."""
    return locked(self.path)

  def flush(self) -> None:
    """Does nothing: what is complete is where it belongs."""

  def on_each_copy(self, work: Callable[[], str]) -> str:
    """Calls `work` on the first host and returns its text on all."""
    return hosts.on_first_host(work)


@contextlib.contextmanager
def opened(
  place: str | os.PathLike,
) -> Iterator[LocalWorkdir | BucketWorkdir]:
  """Yields a workdir: a folder, or what a URL names.

  Raises:
    InputError: if it is a URL that cannot be one.
  """
  if bucket.is_url(place):
    with opened_bucket(str(place)) as workdir:
      yield workdir
  else:
    yield LocalWorkdir(pathlib.Path(os.path.expanduser(place)))


def check_workdir(
  workdir: pathlib.Path,
  config: Mapping[str, Any],
  defaults: Mapping[str, Any],
) -> list[str]:
  """Checks that a run can live in a workdir, without writing there.

  Of the run's length, `setup.check_length` says whether it can change.

  Args:
    workdir: folder of the run.
    config: config of the run.
    defaults: value by key, "optim.momentum", of the keys that a config may
      leave out: with and without its default, a config is the same one.

  Returns:
    A line on keys that have changed and may.

  Raises:
    InputError: if it holds a run of another config, or cannot be written.
  """
  storage.check_can_hold_checkpoint(workdir)
  changed = []
  if os.path.exists(workdir / "config.json"):
    was = {**defaults, **_flat(storage.read_config(workdir))}
    now = {**defaults, **_flat(config)}
    was, now = (json.loads(json.dumps(values)) for values in (was, now))
    differences = {
      key: f"{key:.60} (there {_show(was, key):.60}, now {_show(now, key):.60})"
      for key in sorted(was.keys() | now.keys())
      if key not in ("num_epochs", "num_steps")
      and (key not in was or key not in now or was[key] != now[key])
    }
    changed = [differences.pop(k) for k in MAY_DIFFER if k in differences]
    if differences:
      raise InputError(
        f"workdir {workdir} holds a run of another config, which differs in "
        f"{listing(differences.values(), 10)}: choose another --workdir, or "
        "the same config to continue that run"
      )
  existing = next(
    path
    for path in (workdir, *workdir.absolute().parents)
    if os.path.exists(path)
  )
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise InputError(
      f"workdir {workdir} cannot be written, because {existing} "
      + ("is not writable" if existing.is_dir() else "is not a folder")
      + ": choose another --workdir"
    )
  return [f"continues with {listing(changed, 10)}"] if changed else []


def check_hosts(
  config: Mapping[str, Any], defaults: Mapping[str, Any], **facts: Any
) -> None:
  """Checks that all hosts are about to compute the same run.

  Args:
    config: config of the run.
    defaults: value by key of the keys that a config may leave out.
    **facts: JSON values by name that the data of each host lead to.

  Raises:
    InputError: on all, if they are not.
  """
  values = {
    f"config.{key}": value
    for key, value in {**defaults, **_flat(config)}.items()
    if key not in _OF_EACH_HOST
  }
  hosts.check_same(values | facts | {"the version of JAX": jax.__version__})


# Where each host finds the data, and how many threads it reads them with.
_OF_EACH_HOST = (
  "data.data_dir",
  "data.root",
  "data.num_threads",
  "data.num_workers",
)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
  """Returns the values of nested sections by key: "optim.momentum"."""
  if not isinstance(values, Mapping):
    return {prefix.removesuffix("."): values}
  return {
    name: leaf
    for key, value in values.items()
    for name, leaf in _flat(value, f"{prefix}{key}.").items()
  }


def _show(values: Mapping[str, Any], key: str) -> str:
  return json.dumps(values[key]) if key in values else "absent"


@contextlib.contextmanager
def write_errors_reported(workdir: str | os.PathLike) -> Iterator[None]:
  """Raises a RunError if a file of a run cannot be written.

  Raises:
    RunError: in the place of an OSError.
  """
  try:
    yield
  except BrokenPipeError:
    raise  # Whoever reads what is printed has gone.
  except OSError as error:
    raise RunError(
      f"workdir {workdir} cannot be written: {error}; its complete checkpoints "
      "stay as they are: once it can, the same command continues"
    ) from error


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir, which is made if it is not there.

  The system frees the lock when the process ends, however it ends. It is a
  POSIX lock: those hold on network disks, and no child process inherits them.

  Raises:
    InputError: if another run is in it.
  """
  with contextlib.ExitStack() as stack:
    hosts.on_first_host(lambda: stack.enter_context(_lock(workdir / ".lock")))
    yield


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
  path.parent.mkdir(parents=True, exist_ok=True)
  file = _open_locked(path)
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}")
  file.flush()
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _open_locked(path: pathlib.Path) -> TextIO:
  while True:
    file = path.open("a+")
    try:
      if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
      with file:
        file.seek(0)
        holder = file.read() or "just started"
      raise InputError(
        f"workdir {path.parent} is in use by another run ({holder}): stop "
        "that one, or choose another --workdir"
      ) from error
    except OSError:
      return file  # A disk that knows no locks.
    # Its holder may have ended, and removed it, between the two lines.
    if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
      return file
    file.close()
