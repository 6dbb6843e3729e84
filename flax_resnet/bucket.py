"""Folders in buckets of Google Cloud Storage, gs://, and of S3, s3://.

A bucket holds objects, which are written whole; it has no folders, no rename
and no append. So nothing is worked on there: what is read is copied to this
machine, and what is written is copied up, see `training.bucket_workdir`. Parts
of objects are read for the records of data alone, see `data.places`.
Credentials are found by gcsfs and s3fs, as by the other tools of each service.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import functools
import importlib.util
import os
import pathlib
import re
import tempfile
import time
from typing import Any, TypeVar

from etils import epy

from flax_resnet.errors import InputError
from flax_resnet.schema import Location

with epy.lazy_imports():  # Slow to import, and most runs need no bucket.
  import fsspec

T = TypeVar("T")

# By scheme: the package that knows it, the extra that installs it, the login.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_LOGIN = {
  "gs": "gcloud auth application-default login",
  "s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
LOCATION = Location(tuple(_PACKAGES))
# The last object of a checkpoint to be written, and the first to be removed:
# Orbax takes a checkpoint in a bucket for complete by the same one.
MARKER = "commit_success.txt"
# What the servers, and fsspec's memory, say of an object's contents.
_VERSION = ("size", "generation", "ETag", "etag", "created")
# Objects that are read or written at the same time.
_THREADS = 8
# Connections of s3fs, which has 10; gcsfs has 100.
_CONNECTIONS = 64
# A server that does not answer, or answers that it is busy, is asked again for
# so long, in seconds: whoever waits for the answer, and a run in progress.
PATIENCE = 30
RUN_PATIENCE = 300
_MAX_DELAY = 30
# Errors of google-auth and botocore, by their names, as neither is imported.
_NO_CREDENTIALS = {
  "DefaultCredentialsError",
  "NoCredentialsError",
  "PartialCredentialsError",
  "ProfileNotFound",
}


class BucketError(OSError):
  """A bucket that cannot be read or written, in one sentence."""


class Url(str):
  """The URL of a folder or object in a bucket; `/` joins, as with paths."""

  __slots__ = ()

  def __truediv__(self, name: str) -> "Url":
    return Url(f"{self.rstrip('/')}/{name}")


def is_url(place: str | os.PathLike) -> bool:
  """Whether a place is in a bucket.

  Raises:
    InputError: for a URL of any other kind, or one that names no bucket.
  """
  text = str(place)
  if text not in LOCATION:
    raise InputError(f"{text} is a URL: give {LOCATION}")
  if "://" not in text or text in Location():
    return False
  _, _, path = text.partition("://")
  parts = path.rstrip("/").split("/")
  if {"", ".", ".."} & set(parts) or set("?#\\") & set(path):
    raise InputError(f"{text} is no URL of a folder: give gs://BUCKET/FOLDER")
  return True


def local_path(url: str) -> pathlib.Path:
  """Returns where copies of a URL lie on this machine, until the process ends.

  The end of a path is that of the URL, which `shown` makes of it again.
  """
  scheme, _, path = url.partition("://")
  return _copies() / scheme / path.rstrip("/")


def kept_path(url: str) -> pathlib.Path:
  """Returns where a copy of a URL lies that is kept from run to run."""
  scheme, _, path = url.partition("://")
  return _kept_copies() / scheme / path.rstrip("/")


def shown(text: str) -> str:
  """Returns a text with URLs in the place of paths of their copies."""
  folders = [_kept_copies()]
  if _temporary.cache_info().currsize:
    folders.append(_copies())
  schemes = "|".join(_PACKAGES)
  for folder in folders:
    text = re.sub(rf"{re.escape(str(folder))}/({schemes})/", r"\1://", text)
  return text


def copy_command(url: str, *, is_file: bool = False) -> str:
  """Returns the command that copies a folder, or an object, to this machine."""
  if url.startswith("s3:"):
    return f"aws s3 {'cp' if is_file else 'sync'} {url} ."
  return f"gcloud storage cp {'' if is_file else '-r '}{url} ."


def copy_up(paths: Iterable[pathlib.Path]) -> None:
  """Copies files that were written to `local_path` to where it is a copy of.

  Raises:
    BucketError: if they cannot be written.
  """
  for path in paths:
    url, _, name = shown(str(path)).rpartition("/")
    Folder(url).upload(path.parent, [name])


def _copies() -> pathlib.Path:
  return pathlib.Path(_temporary().name).resolve()


def _kept_copies() -> pathlib.Path:
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(caches, "flax_resnet", "copies")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
  # The folder is removed with this object, when Python ends.
  return tempfile.TemporaryDirectory(prefix="flax_resnet-")


class Folder:
  """The objects of a bucket whose names begin with the path of a folder.

  All methods ask again while the server does not answer, and raise a
  BucketError if it denies, or for good.

  Args:
    url: URL of the folder.
    patience: how long a server that fails is asked again, in seconds; None
      (default) for `PATIENCE`.

  Attributes:
    patience: the same; a caller who cannot wait may shorten it.
  """

  def __init__(self, url: str, patience: float | None = None):
    self.url = url.rstrip("/")
    self.patience = PATIENCE if patience is None else patience
    self._files = open_filesystem(self.url)
    self._root = self.url.partition("://")[2]

  def sizes(self, below: str = "") -> dict[str, int]:
    """Returns the sizes of the objects by their names in this folder.

    Args:
      below: part of the path that they have to begin with; default all.
    """
    infos = self._infos(below)
    return {name: int(infos[name]["size"]) for name in infos if name}

  def versions(self) -> dict[str, str]:
    """Returns what differs when an object is written anew, by name.

    That of the URL itself, if it is one, is "".
    """
    return {name: version for name, (_, version) in self.objects().items()}

  def objects(self) -> dict[str, tuple[int, str]]:
    """Returns sizes, and what `versions` returns, by name."""
    return {
      name: (int(info["size"]), str([info.get(k) for k in _VERSION]))
      for name, info in self._infos("").items()
    }

  def _infos(self, below: str) -> dict[str, dict[str, Any]]:
    root = f"{self._root}/{below}".rstrip("/")
    found = self._call(self._files.find, root, detail=True, missing=False)
    start = len(self._root) + 1
    return {
      name: info
      for path, info in (found or {}).items()
      if not (name := path.lstrip("/")[start:]).endswith("/")
    }

  def read(self, name: str) -> bytes | None:
    """Returns the contents of an object; None if it is not there."""
    return self._call(self._files.cat_file, self._path(name))

  def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Returns parts of objects, which are asked for at the same time.

    What lies beyond the end of an object is left out.

    Args:
      ranges: name of each object, the first byte and the one after the last.

    Raises:
      FileNotFoundError: if an object is not there.
    """
    paths = [self._path(name) for name, _, _ in ranges]
    starts = [start for _, start, _ in ranges]
    ends = [end for _, _, end in ranges]
    found: list[Any] = self._files.cat_ranges(paths, starts, ends)
    for number, part in enumerate(found):
      if isinstance(part, Exception):  # It is asked for again.
        place = (paths[number], starts[number], ends[number])
        found[number] = self._call(self._read_range, *place, missing=None)
    return found

  def _read_range(self, path: str, start: int, end: int) -> bytes:
    try:
      return self._files.cat_file(path, start=start, end=end)
    except Exception as error:  # Each library has its own.
      if _code(error) in ("416", "InvalidRange"):
        return b""
      raise

  def write(self, name: str, data: bytes) -> None:
    """Writes an object, in the place of one that is there."""
    self._call(self._files.pipe_file, self._path(name), data, missing=False)

  def create(self, name: str, data: bytes) -> bool:
    """Writes an object if there is none; of several who try, one does.

    Returns:
      Whether this call has; False if it is there with other contents.
    """
    path = self._path(name)
    try:
      self._call(
        self._files.pipe_file, path, data, mode="create", missing=False
      )
    except FileExistsError:
      # The answer to an earlier attempt of ours may have been lost.
      return self.read(name) == data
    return True

  def remove(self, names: Iterable[str]) -> None:
    """Removes objects; those that are not there are removed already."""
    self._each(lambda name: self._files.rm_file(self._path(name)), names)

  def upload(self, folder: pathlib.Path, names: Iterable[str]) -> None:
    """Copies files of a folder of this machine, those of the same names."""
    self._each(
      lambda name: self._files.put_file(
        str(folder / name), self._path(name), callback=_silent()
      ),
      names,
      missing=False,
    )

  def download(self, names: Iterable[str], folder: pathlib.Path) -> None:
    """Copies objects to files of the same names.

    Raises:
      FileNotFoundError: if one has gone meanwhile.
    """
    names = list(names)
    for name in names:
      if {"", ".", ".."} & set(re.split(r"[/\\]", name)):
        raise BucketError(f"{self.url} has an object {name!r}: rename it")
      (folder / name).parent.mkdir(parents=True, exist_ok=True)

    def get(name: str) -> None:
      self._files.get_file(self._path(name), str(folder / name))

    self._each(get, names, missing=None)

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints of a run, newest first."""
    return complete_steps(self.sizes("checkpoints"))

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}" if name else self._root

  def _each(
    self,
    function: Callable[[str], Any],
    names: Iterable[str],
    missing: bool | None = True,
  ) -> None:
    call = functools.partial(self._call, function, missing=missing)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      list(pool.map(call, names))

  def _call(
    self,
    function: Callable[..., T],
    *args: Any,
    missing: bool | None = True,
    **kwargs: Any,
  ) -> T | None:
    """Returns what a function returns, which is called until it does.

    Args:
      function: what asks the server.
      *args: arguments of the function.
      missing: whether None is returned for what is not there; False if only
        the bucket can be missing, and None to raise a FileNotFoundError.
      **kwargs: arguments of the function.
    """
    end, delay = time.monotonic() + self.patience, 1.0
    while True:
      try:
        return function(*args, **kwargs)
      except FileExistsError:
        raise
      except FileNotFoundError as error:
        if missing is None:
          raise
        if missing:
          return None
        raise BucketError(self._sentence(error)) from error
      except Exception as error:  # Each library has its own.
        if _is_conflict(error):
          raise FileExistsError(str(args[0])) from error
        if _is_final(error) or time.monotonic() + delay > end:
          raise BucketError(self._sentence(error)) from error
      time.sleep(delay)
      delay = min(2 * delay, _MAX_DELAY)

  def _sentence(self, error: Exception) -> str:
    scheme, _, path = self.url.partition("://")
    bucket = f"{scheme}://{path.partition('/')[0]}"
    if isinstance(error, FileNotFoundError):
      return f"there is no bucket {bucket}: make it first, or choose another"
    if _has_no_credentials(error):
      return f"there are no credentials for {self.url}: use {_LOGIN[scheme]}"
    reason = _reason(error)
    if _is_denied(error):
      return (
        f"access to {self.url} is denied ({reason}): its owner can grant it, "
        f"and {_LOGIN[scheme]} makes you another user"
      )
    return f"{self.url} does not answer ({reason})"


def open_filesystem(url: str) -> Any:
  """Returns the fsspec file system of a URL.

  Raises:
    InputError: if the package that knows its scheme is not installed.
  """
  scheme = url.partition("://")[0]
  package = _PACKAGES[scheme]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"the package {package} is not installed, which {scheme}:// needs: "
      f"pip install 'flax_resnet[{_EXTRAS[scheme]}]'"
    )
  # gcsfs asks once more at each call whether a bucket is of a new kind, warns.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  options: dict[str, Any] = {}
  if scheme == "s3":
    options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS}
  # Its own listings would hide what other processes write and remove.
  return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def complete_steps(names: Iterable[str]) -> list[int]:
  """Returns the steps that have a marker among objects, newest first."""
  pattern = re.compile(rf"checkpoints/(\d+)/{re.escape(MARKER)}")
  found = map(pattern.fullmatch, names)
  return sorted((int(match[1]) for match in found if match), reverse=True)


def small_files(names: Iterable[str]) -> list[str]:
  """Returns those of a workdir's objects that a run needs to go on."""
  small = ("config.json", "metrics.jsonl", "summary.json")
  return [name for name in names if name in small]


def files_of_step(names: Iterable[str], step: int) -> list[str]:
  """Returns those of a workdir's objects that are files of a checkpoint."""
  folder = f"checkpoints/{step}/"
  return [
    name
    for name in names
    if name.startswith(folder) and name != f"{folder}{MARKER}"
  ]


def _silent() -> Any:
  return fsspec.callbacks.NoOpCallback()


def _code(error: Exception) -> str:
  """Returns the code of an answer, HTTP's or the name that S3 has for it."""
  cause = error.__cause__
  answer = getattr(cause if cause is not None else error, "response", None)
  if isinstance(answer, dict):  # botocore's.
    return str(answer.get("Error", {}).get("Code", ""))
  return str(getattr(error, "code", None) or getattr(error, "status", ""))


def _is_conflict(error: Exception) -> bool:
  """Whether an object was there already, or was written at the same time."""
  conflicts = ("412", "PreconditionFailed", "ConditionalRequestConflict")
  return _code(error) in conflicts


def _is_denied(error: Exception) -> bool:
  return (
    isinstance(error, PermissionError)
    or _code(error) in ("401", "403")
    or str(error).startswith("Forbidden")  # gcsfs has no code there.
  )


def _has_no_credentials(error: Exception) -> bool:
  names = {kind.__name__ for kind in type(error).__mro__}
  anonymous = "nonymous caller" in str(error)  # gcsfs goes on as such.
  return bool(names & _NO_CREDENTIALS) or anonymous


def _is_final(error: Exception) -> bool:
  """Whether it makes no sense to ask again."""
  own = isinstance(error, (NotADirectoryError, IsADirectoryError, TypeError))
  return own or _is_denied(error) or _has_no_credentials(error)


def _reason(error: Exception) -> str:
  """Returns a line of an error without what a query may hold: signatures."""
  line = " ".join(str(error).split())
  line = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", line)
  return f"{type(error).__name__}: {line:.150}".rstrip(": ")
