"""The image files below the folders of classes, scanned once.

A scan of a million files takes seconds, and minutes over a network. Its result
is kept in the user's cache folder; it holds as long as no folder has changed.
"""

import bisect
import collections
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import time

import numpy as np

from flax_resnet.data.decoding import ENDINGS
from flax_resnet.data.packed import (
  cache_folder,
  PackedNames,
  read_columns,
  write_columns,
)

MIN_KEPT = 50_000  # Images; to scan fewer takes no time.
_VERSION = 1
# Seconds in which a folder may change twice and look as if it had once.
_UNSURE = 2
_ENDINGS = frozenset(ENDINGS)


@dataclasses.dataclass(frozen=True)
class Scan:
  """The image files below the folders of classes.

  Attributes:
    names: their paths from the folder of these on: class by class, sorted.
    counts: number of files of each class, int64 [classes].
    others: number of files left out, by their endings.
  """

  names: PackedNames
  counts: np.ndarray
  others: collections.Counter[str]


def scan(folder: str, classes: Sequence[str]) -> Scan:
  """Returns the image files below folders.

  Args:
    folder: path of the folder that holds them.
    classes: names of the folders.
  """
  index = _index_of(folder)
  return _read(index, folder, classes) or _scan(index, folder, classes)


def _scan(index: pathlib.Path, folder: str, classes: Sequence[str]) -> Scan:
  others, counts = collections.Counter(), []
  visited: dict[str, os.stat_result | None] = {}
  began, start = time.time(), len(os.path.join(folder, ""))

  def by_class() -> Iterator[tuple[str, list[str]]]:
    for name in classes:
      chunks = []
      for path, status, images in walk(os.path.join(folder, name), others):
        visited[path[start:]] = status
        chunks.append((os.path.join(path[start:], ""), images))
      counts.append(sum(len(images) for _, images in chunks))
      if len(chunks) == 1:
        yield chunks[0]
      else:
        yield "", sorted(below + i for below, images in chunks for i in images)

  names = PackedNames.pack(by_class())
  found = Scan(names, np.array(counts, np.int64), others)
  stamps = [_stamp(status) for status in visited.values() if status]
  newest = max((modified for modified, *_ in stamps), default=0)
  if (
    len(names) >= MIN_KEPT
    and len(stamps) == len(visited)  # One that could not be read may change.
    and newest < (began - _UNSURE) * 1e9
  ):
    folders = PackedNames.pack([("", list(visited))])
    columns = {
      "text": names.text.array,
      "ends": names.ends.array,
      "counts": found.counts,
      "folders_text": folders.text.array,
      "folders_ends": folders.ends.array,
      "stamps": np.array(stamps, np.int64),
    }
    with contextlib.suppress(OSError):  # It will be scanned again.
      index.parent.mkdir(parents=True, exist_ok=True)
      write_columns(index, columns, _about(folder, classes, others))
      # Of which worker processes need no copy.
      return _read(index, folder, classes) or found
  return found


def _read(
  index: pathlib.Path, folder: str, classes: Sequence[str]
) -> Scan | None:
  """Returns what an earlier scan has found; None if it no longer holds."""
  if (read := read_columns(index)) is None:
    return None
  columns, about = read
  try:
    others = collections.Counter(about["others"])
    if about != _about(folder, classes, others):
      return None
    folders = PackedNames(columns["folders_text"], columns["folders_ends"])
    stamps = columns["stamps"].array.tolist()
    for row in range(len(folders)):
      if stamps[row] != _stamp(os.stat(os.path.join(folder, folders[row]))):
        return None
    names = PackedNames(columns["text"], columns["ends"])
    counts = columns["counts"].array
    return Scan(names, counts, others) if counts.sum() == len(names) else None
  except (OSError, LookupError, TypeError, AttributeError, ValueError):
    return None


def _index_of(folder: str) -> pathlib.Path:
  digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
  return cache_folder() / f"folder-{digest[:32]}.safetensors"


def _about(
  folder: str, classes: Sequence[str], others: collections.Counter[str]
) -> dict[str, object]:
  return {
    "version": _VERSION,
    "folder": os.path.realpath(folder),
    "classes": list(classes),
    "endings": list(ENDINGS),
    "others": dict(others),
  }


def _stamp(status: os.stat_result) -> list[int]:
  """Returns what of a folder changes when a file comes or goes."""
  return [status.st_mtime_ns, status.st_ino, status.st_dev]


def walk(
  folder: str, others: collections.Counter[str] | None = None
) -> Iterator[tuple[str, os.stat_result | None, list[str]]]:
  """Yields a folder and those below, with the names of their image files.

  Links are followed. Each folder is visited once, as links may lead in circles;
  one that cannot be read counts as empty, and has no status.

  Args:
    folder: path of the folder.
    others: counter of the endings of files that are neither images nor hidden,
      which is added to; None (default) for none.

  Yields:
    Path, status and names of the images, sorted.
  """
  waiting, visited = [folder], set()
  while waiting:
    path = waiting.pop()
    folders, names = [], []
    try:
      status = os.stat(path)
      if (identity := (status.st_dev, status.st_ino)) in visited:
        continue
      visited.add(identity)
      with os.scandir(path) as entries:
        for entry in entries:
          try:
            is_folder = entry.is_dir()
          except OSError:  # A link to itself.
            is_folder = False
          if is_folder:
            folders.append(entry.name)
          else:
            names.append(entry.name)
    except OSError:
      status = None
    waiting += [os.path.join(path, name) for name in sorted(folders)]
    yield path, status, _images(names, others)


def _images(
  names: list[str], others: collections.Counter[str] | None
) -> list[str]:
  """Returns the names of images, sorted; counts those of other files."""
  names.sort()
  # A folder mostly holds images of one ending, and nothing else.
  if names and is_image(names[0]) and is_image(names[-1]):
    ending = names[0][names[0].rfind(".") :]
    hidden = bisect.bisect_left(names, "."), bisect.bisect_left(names, "/")
    same = "\0".join([*names, ""]).count(f"{ending}\0")
    if same == len(names) and hidden[0] == hidden[1]:
      return names
  images = [name for name in names if is_image(name)]
  if others is not None:
    left = {*names}.difference(images)
    others.update(
      os.path.splitext(name)[1].lower() for name in left if name[0] != "."
    )
  return images


def images_below(
  folder: str | os.PathLike, others: collections.Counter[str] | None = None
) -> Iterator[str]:
  """Yields the paths of the image files that `walk` finds."""
  for path, _, images in walk(os.fspath(folder), others):
    for name in images:
      yield os.path.join(path, name)


def is_image(name: str) -> bool:
  """Returns whether a file is taken for an image by its name."""
  ending = name[name.rfind(".") :].lower()
  return ending in _ENDINGS and not name.startswith(".")
