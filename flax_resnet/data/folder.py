"""An image folder as a source: a folder a class."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import operator
import os
import pathlib
import stat
from typing import SupportsIndex
import warnings

import numpy as np

from flax_resnet.data.decoding import ENDINGS, FORMATS, MAX_PIXELS
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.data.sources import (
  OnError,
  parse_split,
  Record,
  stratified_order,
)
from flax_resnet.errors import ImageError, listing

# What a TIFF of `MAX_PIXELS` with 16 bits a channel has.
MAX_FILE_BYTES = 2**30


class FolderSource:
  """The images of `root/SPLIT/CLASS/**` or, undivided, of `root/CLASS/**`.

  An undivided folder is one split, "train". A part of a split, such as
  "train[:80%]", is taken of a seeded order in which all classes are spread
  evenly; the whole is in the order of the file names.

  Args:
    root: path of the folder.
    split: a split in the notation of TFDS.
    seed: seed of the order that parts are taken of; default 0.
    class_names: names of the classes, by label; None (default) for the names of
      the folders, sorted.
    on_error: "stop" (default) to raise for a class without an image, "skip" to
      keep its label.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Raises:
    ValueError: if there are no classes, or not those of `class_names`.
    FileNotFoundError: if there is no such folder.
  """

  channels = 3

  def __init__(
    self,
    root: str | os.PathLike,
    split: str,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    on_error: OnError = "stop",
    max_pixels: int = MAX_PIXELS,
  ):
    self._max_pixels = max_pixels
    folder = _folder_of_split(pathlib.Path(os.path.expanduser(root)), split)
    self._folder = folder
    found = _subfolders(folder)
    self.class_names = list(class_names or found)
    _check_classes(folder, found, self.class_names, on_error)
    others = collections.Counter()
    files = [
      (path, label)
      for label, name in enumerate(self.class_names)
      for path in sorted(images_below(folder / name, others))
    ]
    labels = [label for _, label in files]
    empty = sorted(set(range(len(self.class_names))) - set(labels))
    if empty and on_error == "stop":
      raise ValueError(
        f"class folder {folder / self.class_names[empty[0]]} has no images "
        f"({', '.join(ENDINGS)}): remove it, or set on_error='skip' to keep a "
        "class without any"
      )
    if not files:
      raise ValueError(f"{folder} has no images in the folders of its classes")
    base, *part = split.split("[")
    _, chosen = parse_split(split, {base: len(files)})
    if part:
      chosen = stratified_order(labels, seed)[chosen]
    self._files = [files[index] for index in chosen]
    warn_of_others(folder, others)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: SupportsIndex) -> Record:
    path, label = self._files[operator.index(index)]
    image = read_file(path, self._max_pixels)
    if not image:
      raise ImageError("the file is empty")
    if image.startswith(b"GIF8") and not path.lower().endswith(".gif"):
      # An animation may be behind it, of which one frame would be seen.
      raise ImageError("the file is a GIF under another name")
    return {"image": image, "label": label}

  @property
  def labels(self) -> np.ndarray:
    """Labels of the records, int32 [n]."""
    return np.asarray([label for _, label in self._files], np.int32)

  def name(self, index: SupportsIndex) -> str:
    """Returns the path of a record's file."""
    return self._files[operator.index(index)][0]

  def identity(self) -> Identity:
    """Returns what tells these records apart: relative names and labels."""
    start = len(f"{self._folder}{os.sep}")
    names = "\0".join([path[start:] for path, _ in self._files])
    labels = [label for _, label in self._files]
    return identity_of_labels(self.class_names, labels, os.fsencode(names))


def _folder_of_split(root: pathlib.Path, split: str) -> pathlib.Path:
  if not root.is_dir():
    raise FileNotFoundError(
      f"root is {root}, where there is no folder: give the path of one that "
      "holds a folder a class, or train and val with these"
    )
  base = split.split("[")[0]
  if (root / base).is_dir():
    return root / base
  if base == "train":
    return root
  raise ValueError(
    f"{root} has no folder {base!r} for the split {split!r}: there is "
    f"{listing(_subfolders(root), 10) or 'nothing'}; of an undivided folder "
    "use parts, 'train[:80%]' and 'train[80%:]'"
  )


def _subfolders(folder: pathlib.Path) -> list[str]:
  with os.scandir(folder) as entries:
    return sorted(
      e.name for e in entries if e.is_dir() and not e.name.startswith(".")
    )


def _check_classes(
  folder: pathlib.Path,
  found: list[str],
  class_names: list[str],
  on_error: OnError,
) -> None:
  if len(class_names) < 2:
    raise ValueError(
      f"{folder} holds {len(found)} folder{'s' * (len(found) != 1)} of a class "
      f"({', '.join(found) or 'none'}): there must be 2 at least to tell apart"
    )
  if unknown := sorted(set(found) - set(class_names)):
    raise ValueError(
      f"{folder} has classes that are not trained on: {listing(unknown)}"
    )
  missing = sorted(set(class_names) - set(found))
  if missing and on_error == "stop":
    raise ValueError(
      f"{folder} lacks classes that are trained on: {listing(missing)}; "
      "add them, or set on_error='skip' to go without"
    )


def images_below(
  folder: str | os.PathLike, others: collections.Counter[str] | None = None
) -> Iterator[str]:
  """Yields the image files in a folder and below, by their endings.

  Links are followed. Each folder is visited once, as links may lead in circles;
  one that cannot be read counts as empty.

  Args:
    folder: path of the folder.
    others: counter of the endings of files that are not yielded and not hidden,
      which is added to; None (default) for none.
  """
  waiting, visited = [os.fspath(folder)], set()
  while waiting:
    with contextlib.suppress(OSError):
      path = waiting.pop()
      status = os.stat(path)
      if (identity := (status.st_dev, status.st_ino)) in visited:
        continue
      visited.add(identity)
      with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
          # A link to itself is an error to `entry.is_dir`.
          if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
            waiting.append(entry.path)
          elif is_image(entry.name):
            yield entry.path
          elif others is not None and not entry.name.startswith("."):
            others[os.path.splitext(entry.name)[1].lower()] += 1


def is_image(name: str) -> bool:
  """Returns whether a file is taken for an image by its name."""
  return name.lower().endswith(ENDINGS) and not name.startswith(".")


def warn_of_others(
  folder: str | os.PathLike, others: collections.Counter[str]
) -> None:
  """Warns of the files that `images_below` has not yielded, by their endings.

  Not of each: a folder of photographs may have a note beside each of them.
  """
  if not others:
    return
  counts = (f"{ending or 'none'} {n:,}" for ending, n in others.most_common())
  hint = ""
  if "HEIF" not in FORMATS and others.keys() & {".heic", ".heif"}:
    hint = "; pip install 'flax_resnet[heic]' reads HEIC"
  warnings.warn(
    f"{folder}: files left out by their endings: {listing(counts)}{hint}",
    stacklevel=2,
  )


def read_file(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> bytes:
  """Returns the content of an image file.

  Args:
    path: path of the file.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Raises:
    ImageError: if it cannot be read, or is longer than any image is.
  """
  try:
    status = os.stat(path)
    # A pipe would be waited for, and a device may have no end.
    if not stat.S_ISREG(status.st_mode):
      raise ImageError("the file cannot be read: it is a pipe or a device")
    limit = MAX_FILE_BYTES * max(max_pixels, MAX_PIXELS) // MAX_PIXELS
    if status.st_size > limit:
      raise ImageError(
        f"the file has {status.st_size:,} bytes, more than {limit:,}: it would "
        "fill the memory"
      )
    with open(path, "rb") as file:
      # No more than was checked; Python takes the memory for it beforehand.
      return file.read(status.st_size)
  except OSError as error:
    raise ImageError(f"the file cannot be read: {error.strerror}") from error
