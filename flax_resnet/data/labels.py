"""Labels that are texts, and the classes that they name."""

from collections.abc import Callable, Iterator, Sequence
import os
import pathlib

import numpy as np

from flax_resnet.data.packed import SharedArray
from flax_resnet.errors import listing

CLASSES_FILE = "classes.txt"
_CHUNK = 2**15  # Records that are gathered at a time.


class Codes(dict[str, int]):
  """Numbers of texts, in the order in which they are first asked for."""

  def __missing__(self, text: str) -> int:
    self[text] = code = len(self)
    return code

  def of(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the numbers of texts, int32 [n]."""
    return np.fromiter(map(self.__getitem__, texts), np.int32, len(texts))


class LabelSets:
  """Labels of several classes each, of which few differ.

  Args:
    codes: number of each record's row, int32 [n].
    rows: whether a class is in a row, a bit each as of `numpy.packbits`.
    num_classes: number of classes.
  """

  def __init__(self, codes: SharedArray, rows: SharedArray, num_classes: int):
    self._codes, self._rows = codes, rows
    self._num_classes = num_classes

  def __len__(self) -> int:
    return len(self._codes)

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns the classes of a record, uint8 [classes]."""
    packed = self._rows[self._codes[index]]
    return np.unpackbits(packed, count=self._num_classes)

  @property
  def array(self) -> np.ndarray:
    """All of them, uint8 [n, classes]."""
    return self._unpacked()[self._codes.array]

  def _unpacked(self) -> np.ndarray:
    return np.unpackbits(self._rows.array, axis=1, count=self._num_classes)

  def take(self, indices: np.ndarray) -> "LabelSets":
    """Returns those of some records."""
    return LabelSets(self._codes.take(indices), self._rows, self._num_classes)

  def counts(self) -> np.ndarray:
    """Returns the number of records of each class, int64 [classes]."""
    rows = self._unpacked()
    return np.bincount(self._codes.array, minlength=len(rows)) @ rows

  def packed(self) -> Iterator[np.ndarray]:
    """Yields the rows of some records each, in order."""
    for start in range(0, len(self), _CHUNK):
      yield self._rows[self._codes[start : start + _CHUNK]]


def sorted_classes(texts: Sequence[str]) -> list[str]:
  """Returns texts in the order of their labels: numbers by their value."""
  if all(text.isdecimal() for text in texts):
    digits = {text: text.lstrip("0") for text in texts}
    return sorted(
      texts, key=lambda text: (len(digits[text]), digits[text], text)
    )
  return sorted(texts)


def read_classes(path: str | os.PathLike) -> list[str]:
  """Returns the names of the classes in a text file, a line each.

  Raises:
    ValueError: if it names a class twice or none.
    OSError: if it cannot be read.
  """
  path = pathlib.Path(os.path.expanduser(path))
  try:
    return parse_classes(path.read_bytes(), str(path))
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"classes_file is {path}, which is not there: give the path of a text "
      "file with the name of a class in each line"
    ) from error


def parse_classes(content: bytes, path: str) -> list[str]:
  """Returns the names of the classes in the content of a text file.

  Args:
    content: a line for each class, UTF-8.
    path: path of the file, for messages.

  Raises:
    ValueError: if it names a class twice or none.
  """
  try:
    lines = content.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
  while lines and not lines[-1].strip():
    lines.pop()
  seen: dict[str, int] = {}
  for number, name in enumerate(lines, 1):
    if not name.strip():
      raise ValueError(f"line {number} of {path} names no class")
    if name in seen:
      raise ValueError(
        f"lines {seen[name]} and {number} of {path} are the same class, "
        f"{name!r:.100}"
      )
    seen[name] = number
  if not lines:
    raise ValueError(f"{path} names no class")
  return lines


def classes_beside(
  folder: pathlib.Path, classes_file: str | None
) -> list[str] | None:
  """Returns the classes of a file, or of `classes.txt` in a folder if any."""
  if classes_file is not None:
    return read_classes(classes_file)
  beside = folder / CLASSES_FILE
  return read_classes(beside) if beside.is_file() else None


def class_numbers(
  texts: Sequence[str], class_names: Sequence[str]
) -> np.ndarray:
  """Returns the class of each text, int32 [n]; -1 where it is none.

  A text is the name of a class. Where all are numbers, and classes have other
  names, they count the classes from 0.
  """
  by_name = {name: number for number, name in enumerate(class_names)}
  numbers = [by_name.get(text, -1) for text in texts]
  names_are_numbers = all(name.isdecimal() for name in class_names)
  if not names_are_numbers and all(text.isdecimal() for text in texts):
    counted = [int(text.lstrip("0")[:10] or "0") for text in texts]
    numbers = [n if n < len(class_names) else -1 for n in counted]
  return np.array(numbers, np.int32)


def labels_of_texts(
  texts: Sequence[str],
  codes: np.ndarray,
  class_names: Sequence[str],
  place: Callable[[int], str],
) -> np.ndarray:
  """Returns the label of each record, int32 [n], see `class_numbers`.

  Args:
    texts: what the labels are called.
    codes: number of each record's text, int [n].
    class_names: names of the classes, by label.
    place: function of the number of a record that says where it is.

  Raises:
    ValueError: for the first record whose text is none of the classes.
  """
  labels = class_numbers(texts, class_names)[codes]
  if (labels < 0).any():
    first = int(np.argmax(labels < 0))
    raise ValueError(
      f"{place(first)} has the label {texts[codes[first]]!r:.100}, which is "
      f"none of the classes: {listing(class_names)}"
    )
  return labels
