"""An image folder as a source: a folder a class."""

import collections
from collections.abc import Sequence
import operator
import os
import pathlib
import stat
from typing import SupportsIndex
import warnings

import numpy as np

from flax_resnet.data.decoding import ENDINGS, FORMATS, MAX_PIXELS
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.data.packed import SharedArray
from flax_resnet.data.scan import scan
from flax_resnet.data.sources import (
  OnError,
  part_of,
  Record,
)
from flax_resnet.errors import ImageError, listing

# What a TIFF of `MAX_PIXELS` with 16 bits a channel has.
MAX_FILE_BYTES = 2**30
# What splits are called, and classes hardly.
_SPLITS = {
  *("train", "training", "val", "valid", "validation", "dev", "test"),
  "testing",
}


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
    self._folder = str(folder)
    found = _subfolders(folder)
    self.class_names = list(class_names or found)
    _check_classes(folder, found, self.class_names, on_error)
    scanned = scan(str(folder), found)
    by_name = {name: label for label, name in enumerate(self.class_names)}
    numbers = np.array([by_name[name] for name in found], np.int32)
    counts = np.zeros(len(self.class_names), np.int64)
    counts[numbers] = scanned.counts
    (empty,) = np.nonzero(counts == 0)
    if len(empty) and on_error == "stop":
      raise ValueError(
        f"class folder {folder / self.class_names[empty[0]]} has no images "
        f"({', '.join(ENDINGS)}): remove it, or set on_error='skip' to keep a "
        "class without any"
      )
    if not counts.any():
      raise ValueError(f"{folder} has no images in the folders of its classes")
    labels = np.repeat(numbers, scanned.counts)
    rows = None
    if (np.diff(numbers) < 0).any():  # Classes in another order than sorted.
      rows = np.argsort(labels, kind="stable").astype(np.int32)
      labels = labels[rows]
    if (chosen := part_of(split, labels, seed)) is not None:
      rows = chosen if rows is None else rows[chosen]
      labels = labels[chosen]
    self._names, self._labels = scanned.names, SharedArray(labels)
    self._rows = None if rows is None else SharedArray(rows)
    warn_of_others(folder, scanned.others)

  @property
  def labels(self) -> np.ndarray:
    """Labels of the records, int32 [n]."""
    return self._labels.array

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: SupportsIndex) -> Record:
    image = read_image(self.name(index), self._max_pixels)
    return {"image": image, "label": int(self._labels[operator.index(index)])}

  def name(self, index: SupportsIndex) -> str:
    """Returns the path of a record's file."""
    row = operator.index(index)
    if self._rows is not None:
      row = self._rows[row]
    return os.path.join(self._folder, self._names[row])

  def identity(self) -> Identity:
    """Returns what tells these records apart: relative names and labels."""
    rows = None if self._rows is None else self._rows.array
    names = self._names.joined(rows)
    return identity_of_labels(self.class_names, self._labels.array, *names)


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
  if found and {name.lower() for name in found} <= _SPLITS:
    raise ValueError(
      f"{folder} holds {listing(found)}, which are called as splits and not as "
      "classes: rename them to train and val, or name them by train_split and "
      "eval_split"
    )
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


def warn_of_others(
  folder: str | os.PathLike, others: collections.Counter[str]
) -> None:
  """Warns of the files that a scan has left out, by their endings.

  Not of each: a folder of photographs may have a note beside each of them.
  """
  if not others:
    return
  endings = sorted(others, key=lambda each: (-others[each], not each, each))
  counts = (f"{ending or 'none'} {others[ending]:,}" for ending in endings)
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
    if status.st_size > (limit := max_file_bytes(max_pixels)):
      raise ImageError(
        f"the file has {status.st_size:,} bytes, more than {limit:,}: it would "
        "fill the memory"
      )
    with open(path, "rb") as file:
      # No more than was checked; Python takes the memory for it beforehand.
      return file.read(status.st_size)
  except OSError as error:
    raise ImageError(f"the file cannot be read: {error.strerror}") from error


def max_file_bytes(max_pixels: int) -> int:
  """Returns the largest number of bytes of a file of so many pixels."""
  return MAX_FILE_BYTES * max(max_pixels, MAX_PIXELS) // MAX_PIXELS


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> bytes:
  """Returns the content of a file of a data set, as `read_file` does.

  Raises:
    ImageError: also if it is empty, or a GIF under another name.
  """
  image = read_file(path, max_pixels)
  check_content(image, path)
  return image


def check_content(image: bytes, name: str) -> None:
  """Raises ImageError for what `read_image` refuses.

  Args:
    image: content of a file.
    name: its name.
  """
  if not image:
    raise ImageError("the file is empty")
  if image.startswith(b"GIF8") and not name.lower().endswith(".gif"):
    # An animation may be behind it, of which one frame would be seen.
    raise ImageError("the file is a GIF under another name")
