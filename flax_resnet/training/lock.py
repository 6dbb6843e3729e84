"""One run at a time in a workdir."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import socket
from typing import TextIO

from flax_resnet.training import hosts
from flax_resnet.training.schema import InputError

try:
  import fcntl
except ImportError:  # Windows; there nothing is locked.
  fcntl = None


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir, which is made if it is not there.

  The system frees the lock when the process ends, however it ends. It is a
  POSIX lock: those hold on network disks, and no child process inherits them.

  Raises:
    InputError: When another run is in it.
  """
  with contextlib.ExitStack() as stack:
    hosts.first(lambda: stack.enter_context(_lock(workdir / ".lock")))
    yield


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
  path.parent.mkdir(parents=True, exist_ok=True)
  file = _taken(path)
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}")
  file.flush()
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _taken(path: pathlib.Path) -> TextIO:
  while True:
    file = path.open("a+")
    try:
      if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
      raise InputError(
        f"workdir {path.parent} is in use by another run ({_who(file)}): stop "
        "that one, or choose another --workdir"
      ) from error
    except OSError:
      return file  # A disk that knows no locks.
    # Its holder may have ended, and removed it, between the two lines.
    if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
      return file
    file.close()


def _who(file: TextIO) -> str:
  file.seek(0)
  return file.read() or "just started"
