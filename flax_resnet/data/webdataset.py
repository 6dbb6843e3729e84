"""Shards of a webdataset as a source: tar files, read by index.

A member begins where an index says, so that no shard is unpacked, and the order
of records is that of any other source: a function of seed and step, where those
who read shards from their beginning shuffle what a buffer holds.
"""

from collections.abc import Sequence
import contextlib
import operator
import os
import tarfile
from typing import SupportsIndex

import numpy as np

from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.folder import check_content, max_file_bytes
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.data.labels import (
  CLASSES_FILE,
  labels_of_texts,
  parse_classes,
  read_classes,
  sorted_classes,
)
from flax_resnet.data.packed import PackedNames, SharedArray
from flax_resnet.data.places import files_at, Part, read_beside
from flax_resnet.data.shards import is_member, open_index, shards_of_split
from flax_resnet.data.sources import Columns, part_of, Record, Source
from flax_resnet.errors import ImageError


class WebDatasetSource:
  """The images in tar files, each with its label beside it.

  `KEY.jpg` (or another ending of images) and `KEY.cls`, which holds the label,
  or `KEY.json` with the label under `columns.label_column`. A label is the name
  of a class or its number from 0.

  Where the members are is found once, and kept in an index beside the shards,
  or in the user's cache folder where that cannot be written, as in a bucket. Of
  a shard in a bucket the bytes of each image are read when they are needed, and
  its header with them, which tells whether it is still there. A part of a
  split, such as "train[:80%]", is taken of a seeded order in which all classes
  are spread evenly; the whole is in the order of the shards.

  Args:
    root: path, or gs:// or s3:// URL, of a folder of .tar files, or a pattern
      of theirs, "train-{000000..000012}.tar". A folder has a folder a split, or
      the split as a word in the names of the files; without either, all is
      "train".
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
    root = os.path.expanduser(root)
    self._files = files_at(root)
    self._shards = shards_of_split(root, split, self._files)
    index, texts = open_index(self._shards, columns.label_column, self._files)
    self._stamps = index["stamps"]
    self._ends, self._offsets = index["shard_ends"].array, index["offsets"]
    self._sizes = index["sizes"]
    self._keys = PackedNames(index["keys_text"], index["keys_ends"])
    codes = index["labels"].array
    folder = os.path.dirname(self._shards[0])
    given = class_names or _given_classes(self._shards[0], columns)
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
    part = self._part(index)
    try:
      (content,) = self._files.read([part])
    except OSError as error:
      raise ImageError(
        f"the shard cannot be read: {error.strerror or 'it is gone'}"
      ) from error
    return self._record(index, part, content)

  def fetched(self, indices: np.ndarray) -> Source:
    """Returns a source of these records that asks for all of them at once.

    It is this source where that gains nothing: on this machine.

    Args:
      indices: indices of the records, int [n].
    """
    return _Fetched(self, indices) if self._files.in_bucket else self

  def _part(self, index: SupportsIndex) -> Part:
    """Returns where a record is; in a bucket with its header before it."""
    row = self._row(index)
    size, offset = int(self._sizes[row]), int(self._offsets[row])
    if size > self._max_bytes:
      raise ImageError(
        f"the member has {size:,} bytes, more than {self._max_bytes:,}: it "
        "would fill the memory"
      )
    header = tarfile.BLOCKSIZE if self._files.in_bucket else 0
    shard = self._shard(row)
    stamp = self._stamps[shard].tolist()
    return self._shards[shard], offset - header, size + header, stamp

  def _record(
    self, index: SupportsIndex, part: Part, content: bytes | None
  ) -> Record:
    """Returns a record of what was read of it."""
    name = self._keys[self._row(index)]
    if content is not None and self._files.in_bucket:
      header, image = content[: tarfile.BLOCKSIZE], content[tarfile.BLOCKSIZE :]
      size = part[2] - tarfile.BLOCKSIZE
      whole = len(image) == size and is_member(header, name, size)
      content = image if whole else None
    if content is None:
      raise ValueError(
        f"{part[0]} has changed since it was opened: start again"
      )
    check_content(content, name)
    return {"image": content, "label": int(self._labels[operator.index(index)])}

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


class _Fetched:
  """Records of a source of which some are there already.

  Args:
    source: the source.
    indices: indices of the records that are asked for at once.
  """

  def __init__(self, source: WebDatasetSource, indices: np.ndarray):
    self._source = source
    self.channels, self.class_names = source.channels, source.class_names
    parts: dict[int, Part] = {}
    for index in indices:
      with contextlib.suppress(ImageError):  # Raised where it is used.
        parts[int(index)] = source._part(index)
    self._contents = {}
    with contextlib.suppress(FileNotFoundError):
      contents = source._files.read(list(parts.values()))
      self._contents = dict(zip(parts, contents, strict=True))

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:
    content = self._contents.get(operator.index(index))
    if content is None:
      return self._source[index]
    return self._source._record(index, self._source._part(index), content)

  def name(self, index: SupportsIndex) -> str:
    return self._source.name(index)


def _given_classes(shard: str, columns: Columns) -> list[str] | None:
  """Returns the classes of `classes_file`, or of a file beside the shards."""
  if columns.classes_file is not None:
    return read_classes(columns.classes_file)
  content = read_beside(shard, CLASSES_FILE)
  beside = os.path.join(os.path.dirname(shard), CLASSES_FILE)
  return None if content is None else parse_classes(content, beside)


def _classes(texts: Sequence[str]) -> list[str]:
  """Returns the names of classes by label; numbers are those of labels."""
  if texts and all(text.isdecimal() and len(text) < 7 for text in texts):
    return [str(label) for label in range(max(map(int, texts)) + 1)]
  return sorted_classes(texts)
