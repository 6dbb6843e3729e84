"""Shards of a webdataset as a source: tar files, read by index.

A member begins where an index says, so that no shard is unpacked, and the order
of records is that of any other source: a function of seed and step, where those
who read shards from their beginning shuffle what a buffer holds.
"""

from collections.abc import Sequence
import operator
import os
import pathlib
from typing import SupportsIndex

import numpy as np

from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.folder import check_content, max_file_bytes
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.data.labels import (
  classes_beside,
  labels_of_texts,
  sorted_classes,
)
from flax_resnet.data.packed import PackedNames, SharedArray
from flax_resnet.data.shards import open_index, shards_of_split, stamp
from flax_resnet.data.sources import Columns, part_of, Record
from flax_resnet.errors import ImageError


class WebDatasetSource:
  """The images in tar files, each with its label beside it.

  `KEY.jpg` (or another ending of images) and `KEY.cls`, which holds the label,
  or `KEY.json` with the label under `columns.label_column`. A label is the name
  of a class or its number from 0.

  Where the members are is found once, and kept in an index beside the shards,
  or in the user's cache folder where that cannot be written. A part of a split,
  such as "train[:80%]", is taken of a seeded order in which all classes are
  spread evenly; the whole is in the order of the shards.

  Args:
    root: path of a folder of .tar files, or a pattern of their paths,
      "train-{000000..000012}.tar". A folder has a folder a split, or the split
      as a word in the names of the files; without either, all is "train".
    split: a split in the notation of TFDS.
    columns: what labels are called.
    seed: seed of the order that parts are taken of; default 0.
    class_names: names of the classes, by label; None (default) for those of
      `columns.classes_file`, of the labels, or their numbers.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Raises:
    ValueError: for shards that cannot be, with the member.
    FileNotFoundError: if there are none.
  """

  channels = 3

  def __init__(
    self,
    root: str | os.PathLike,
    split: str,
    columns: Columns,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
  ):
    self._max_bytes = max_file_bytes(max_pixels)
    self._shards = shards_of_split(os.path.expanduser(root), split)
    index, texts = open_index(self._shards, columns.label_column)
    self._stamps = index["stamps"]
    self._ends, self._offsets = index["shard_ends"].array, index["offsets"]
    self._sizes = index["sizes"]
    self._keys = PackedNames(index["keys_text"], index["keys_ends"])
    codes = index["labels"].array
    folder = pathlib.Path(self._shards[0]).parent
    given = class_names or classes_beside(folder, columns.classes_file)
    self.class_names = list(given or _classes(texts))
    if len(self.class_names) < 2:
      raise ValueError(
        f"{folder} has shards of {len(self.class_names)} class "
        f"({', '.join(self.class_names)}): there must be 2 at least to tell "
        "apart"
      )
    labels = labels_of_texts(texts, codes, self.class_names, self._place)
    rows = part_of(split, labels, seed)
    self._rows = None if rows is None else SharedArray(rows)
    self._labels = SharedArray(labels if rows is None else labels[rows])

  @property
  def labels(self) -> np.ndarray:
    """Labels of the records, int32 [n]."""
    return self._labels.array

  def __len__(self) -> int:
    return len(self._labels)

  def _row(self, index: SupportsIndex) -> int:
    row = operator.index(index)
    return row if self._rows is None else int(self._rows[row])

  def __getitem__(self, index: SupportsIndex) -> Record:
    row, label = self._row(index), int(self._labels[operator.index(index)])
    size, offset = int(self._sizes[row]), int(self._offsets[row])
    if size > self._max_bytes:
      raise ImageError(
        f"the member has {size:,} bytes, more than {self._max_bytes:,}: it "
        "would fill the memory"
      )
    shard = self._shard(row)
    try:
      descriptor = os.open(self._shards[shard], os.O_RDONLY)
      try:
        if stamp(os.fstat(descriptor)) != self._stamps[shard].tolist():
          raise ValueError(
            f"{self._shards[shard]} has changed since it was opened: start "
            "again"
          )
        image = os.pread(descriptor, size, offset)
      finally:
        os.close(descriptor)
    except OSError as error:
      raise ImageError(f"the shard cannot be read: {error.strerror}") from error
    check_content(image, self._keys[row])
    return {"image": image, "label": label}

  def _shard(self, row: int) -> int:
    return int(np.searchsorted(self._ends, row, side="right"))

  def _place(self, row: int) -> str:
    return f"{self._keys[row]} in {self._shards[self._shard(row)]}"

  def name(self, index: SupportsIndex) -> str:
    """Returns the name of a record's image, and its shard."""
    return self._place(self._row(index))

  def identity(self) -> Identity:
    """Returns what tells these records apart: names of images, and labels."""
    rows = None if self._rows is None else self._rows.array
    names = self._keys.joined(rows)
    return identity_of_labels(self.class_names, self._labels.array, *names)


def _classes(texts: Sequence[str]) -> list[str]:
  """Returns the names of classes by label; numbers are those of labels."""
  if texts and all(text.isdecimal() and len(text) < 7 for text in texts):
    return [str(label) for label in range(max(map(int, texts)) + 1)]
  return sorted_classes(texts)
