"""A manifest as a source: a table of paths and labels."""

from collections.abc import Sequence
import itertools
import operator
import os
import pathlib
from typing import SupportsIndex

import numpy as np

from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.folder import read_image
from flax_resnet.data.identity import (
  Identity,
  identity_of_counts,
  identity_of_labels,
)
from flax_resnet.data.labels import (
  class_numbers,
  classes_beside,
  labels_of_texts,
  LabelSets,
  sorted_classes,
)
from flax_resnet.data.packed import SharedArray
from flax_resnet.data.sources import Columns, OnError, part_of, Record
from flax_resnet.data.table import open_table, Table
from flax_resnet.errors import listing

# Files that are looked for at the start; the others are when they are read.
MAX_LOOKED_FOR = 10_000


class ManifestSource:
  """The images that a table names, with their labels.

  A part of a split, such as "train[:80%]", is taken of a seeded order in which
  all classes are spread evenly (of images with several classes: of a shuffled
  one); the whole is in the order of the lines.

  Args:
    path: path of the table: .csv, .tsv or .parquet.
    split: a split in the notation of TFDS.
    columns: names of the columns.
    seed: seed of the order that parts are taken of; default 0.
    class_names: names of the classes, by label; None (default) for those of
      `columns.classes_file` or of the labels.
    on_error: "stop" (default) to raise for a file that is not there, "skip" to
      leave that to its reader.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Attributes:
    channels: 3.
    class_names: names of the classes, by label.
    multi_label: whether an image may have several labels.

  Raises:
    ValueError: for a table that cannot be, with the line.
    FileNotFoundError: if it is not there, or a file that it names.
  """

  channels = 3

  def __init__(
    self,
    path: str | os.PathLike,
    split: str,
    columns: Columns,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    on_error: OnError = "stop",
    max_pixels: int = MAX_PIXELS,
  ):
    self._max_pixels = max_pixels
    file = pathlib.Path(os.path.expanduser(path))
    self._folder = str(file.parent)
    self._table = table = open_table(file, columns)
    rows = table.rows_of(split)
    given = class_names or classes_beside(file.parent, columns.classes_file)
    self.multi_label = columns.label_separator is not None
    if columns.label_separator is None:
      self.class_names, labels = _labels(table, rows, given)
      kinds = labels.array
    else:
      self.class_names, labels = _label_sets(
        table, rows, given, columns.label_separator
      )
      kinds = np.zeros_like(rows)
    if (chosen := part_of(split, kinds, seed)) is not None:
      rows, labels = rows[chosen], labels.take(chosen)
    self._labels: SharedArray | LabelSets = labels
    self._rows = SharedArray(rows)
    if on_error == "stop":
      self._check_are_there()

  def _check_are_there(self) -> None:
    for index in range(0, len(self), -(-len(self) // MAX_LOOKED_FOR)):
      if not os.path.exists(self._path(index)):
        raise FileNotFoundError(
          f"{self.name(index)} is not there: mend the line, in which a path is "
          f"from {self._folder} on, or set on_error='skip' to go without"
        )

  @property
  def labels(self) -> np.ndarray:
    """Labels of the records, int32 [n] or, of several, uint8 [n, classes]."""
    return self._labels.array

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = operator.index(index)
    image = read_image(self._path(index), self._max_pixels)
    label = self._labels[index]
    return {"image": image, "label": label if np.ndim(label) else int(label)}

  def _path(self, index: int) -> str:
    return os.path.join(self._folder, self._table.paths[self._rows[index]])

  def name(self, index: SupportsIndex) -> str:
    """Returns the path of a record's file, and its line."""
    index = operator.index(index)
    return f"{self._path(index)} ({self._table.line(self._rows[index])})"

  def identity(self) -> Identity:
    """Returns what tells these records apart: paths as written, and labels."""
    names = self._table.paths.joined(self._rows.array)
    if isinstance(self._labels, LabelSets):
      counts, parts = self._labels.counts(), self._labels.packed()
      parts = itertools.chain(parts, names)
      return identity_of_counts(self.class_names, counts, parts)
    return identity_of_labels(self.class_names, self._labels.array, *names)


def _labels(
  table: Table, rows: np.ndarray, given: Sequence[str] | None
) -> tuple[list[str], SharedArray]:
  """Returns the names of the classes, and the labels of records, int32 [n]."""
  codes = table.labels[rows]
  used = np.unique(codes)
  texts = [table.texts[int(code)] for code in used]
  for code, text in zip(used, texts, strict=True):
    if not text.strip():
      row = rows[np.argmax(codes == code)]
      raise ValueError(f"{table.line(row)} has no label: give it one")
  names = list(given or sorted_classes(texts))
  if len(names) < 2:
    raise ValueError(
      f"{table.title} has {len(names)} class ({', '.join(names)}): there must "
      "be 2 at least to tell apart"
    )
  places = np.zeros(len(table.texts), np.int32)
  places[used] = np.arange(len(used))
  labels = labels_of_texts(
    texts, places[codes], names, lambda row: table.line(rows[row])
  )
  return names, SharedArray(labels)


def _label_sets(
  table: Table,
  rows: np.ndarray,
  given: Sequence[str] | None,
  separator: str,
) -> tuple[list[str], LabelSets]:
  """Returns the names of the classes, and those of each record.

  An empty label is that of an image of no class.
  """
  if not separator:
    raise ValueError("label_separator is '': use a sign, such as '|'")
  used, places = np.unique(table.labels[rows], return_inverse=True)
  split = [
    [
      part.strip()
      for part in table.texts[int(code)].split(separator)
      if part.strip()
    ]
    for code in used
  ]
  known = sorted(set(itertools.chain(*split)))
  names = list(given or sorted_classes(known))
  numbers = dict(zip(known, class_numbers(known, names).tolist(), strict=True))
  sets = np.zeros((len(used), len(names)), np.uint8)
  for place, parts in enumerate(split):
    for part in parts:
      if numbers[part] < 0:
        row = rows[np.argmax(places == place)]
        raise ValueError(
          f"{table.line(row)} has the label {part!r:.100}, which is none of "
          f"the classes: {listing(names)}"
        )
      sets[place, numbers[part]] = 1
  codes, packed = places.astype(np.int32), np.packbits(sets, axis=1)
  return names, LabelSets(SharedArray(codes), SharedArray(packed), len(names))
