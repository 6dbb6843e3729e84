"""A bucket in memory, for tests: it fails, and dies, when it is told to."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from flax_resnet import bucket, storage

WRITES = ("pipe_file", "put_file", "rm_file")


class Killed(BaseException):
  """The end of a process in the middle of a write."""


class MemoryBucket(MemoryFileSystem):
  """A file system of `gs://` and `s3://` in memory.

  Attributes:
    writes: number of objects written or removed.
    before: function that is called with a method's name and a path before
      anything is done; what it raises is what the server answers.
  """

  cachable = False

  def __init__(self):
    super().__init__()
    self.store, self.pseudo_dirs = {}, [""]
    self.writes = 0
    self.before: Callable[[str, str], Any] = lambda method, path: None

  def __getattribute__(self, name):
    found = super().__getattribute__(name)
    if name not in (*WRITES, "find", "cat_file", "get_file"):
      return found

    @functools.wraps(found)
    def asked(path, *args, **kwargs):
      other = args[0] if name == "put_file" else path
      self.before(name, other)
      self.writes += name in WRITES
      return found(path, *args, **kwargs)

    return asked

  def put_file(self, lpath, rpath, **kwargs):
    with open(lpath, "rb") as file:
      data = file.read()
    MemoryFileSystem.pipe_file(self, rpath, data)

  def names(self, url):
    """Returns the names of the objects in the folder of a URL."""
    root = "/" + url.partition("://")[2] + "/"
    return sorted(
      path.removeprefix(root) for path in self.store if path.startswith(root)
    )

  def text(self, url):
    """Returns the contents of an object as text."""
    return self.store["/" + url.partition("://")[2]].getvalue().decode()


def folder_bucket(root: str | pathlib.Path) -> DirFileSystem:
  """Returns a bucket in a folder, which several processes see."""
  files = fsspec.filesystem("file", auto_mkdir=True)
  return DirFileSystem(path=str(root), fs=files)


def copy_run(workdir: pathlib.Path, url: str) -> None:
  """Copies a workdir to a bucket, as a run that works there leaves it."""
  names = [
    path.relative_to(workdir).as_posix()
    for path in workdir.rglob("*")
    if path.is_file()
  ]
  folder = bucket.Folder(url)
  folder.upload(workdir, names)
  for step in storage.checkpoint_steps(workdir / "checkpoints"):
    folder.write(f"checkpoints/{step}/{bucket.MARKER}", b"")


def kill_at(memory: MemoryBucket, number: int) -> None:
  """Kills whoever does the write of a number, and all who come later."""
  memory.writes = 0

  def before(method, path):
    if method in WRITES and memory.writes >= number:
      raise Killed

  memory.before = before
