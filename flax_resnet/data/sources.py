"""Records by index: step 1 of the way of a batch.

A source of one's own is any class with the members of `Source`. A folder of
images is in `data.folder`, a TFDS set in `data.tfds`.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import operator
import os
from typing import (
  Literal,
  Protocol,
  runtime_checkable,
  SupportsIndex,
  TypedDict,
)

from etils import epy
import numpy as np

from flax_resnet.data.decoding import decode, MAX_PIXELS
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.errors import ImageError, listing
from flax_resnet.schema import height_and_width, ImageSize, LocalPath

with epy.lazy_imports():  # Slow to import, and not every source needs it.
  import tensorflow_datasets as tfds

# What to do about an image that cannot be read: stop with its name, or skip it.
OnError = Literal["stop", "skip"]

SYNTHETIC_SIZES = {"train": 1024, "test": 256}
MAX_SYNTHETIC_CLASSES = 1_000_000  # Each has a name.


class Record(TypedDict):
  """One example: an encoded file, or uint8 [h, w, c], and its class.

  Of a source whose `multi_label` is True, the label is uint8 [classes], with 1
  for each class that the image has.
  """

  image: bytes | np.ndarray
  label: int | np.ndarray


@dataclasses.dataclass(frozen=True)
class Columns:
  """What holds what in a table of images and labels.

  Attributes:
    path_column: column of a manifest with the path of an image, from the
      manifest's folder on; default "path".
    image_column: column of a parquet or Arrow set with images; default "image".
    label_column: column with labels, and key of labels in the .json members of
      a webdataset; default "label".
    split_column: column of a manifest with the split; default "split", without
      which all is "train".
    label_separator: text between the classes of an image in a manifest that
      gives several; None (default) where each image has one.
    classes_file: path of a text file with the name of a class in each line, by
      label; None (default) for `classes.txt` beside the data, or for what the
      labels are, sorted.
    config_name: name of one of several configurations of a parquet or hub set;
      None (default) for its only one.
  """

  path_column: str = "path"
  image_column: str = "image"
  label_column: str = "label"
  split_column: str = "split"
  label_separator: str | None = None
  classes_file: LocalPath | None = None
  config_name: str | None = None


@runtime_checkable
class Source(Protocol):
  """Records by index; safe to read from several threads at once.

  Attributes:
    channels: channels that images are decoded to, 1 for gray or 3 for RGB.
    class_names: names of the classes, by label.
    multi_label: whether a record may have several labels; a source may lack
      it, for False.
    labels: labels of the records, int [n] or uint8 [n, classes]; a source may
      lack them, and its records are asked one by one where they are needed.
  """

  @property
  def channels(self) -> int: ...

  @property
  def class_names(self) -> Sequence[str]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex, /) -> Record: ...

  def name(self, index: SupportsIndex, /) -> str:
    """Returns the name of a record in messages."""
    ...


class SyntheticSource:
  """Noise around one random picture a class; for benchmarks and tests.

  Args:
    num_examples: number of records.
    image_size: height and width in pixels, one number or both.
    num_classes: number of classes; labels take turns.
  """

  channels = 3

  def __init__(
    self, num_examples: int, image_size: ImageSize, num_classes: int
  ):
    self._num_examples = num_examples
    self._shape = (*height_and_width(image_size), self.channels)
    self.class_names = [str(label) for label in range(num_classes)]

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: SupportsIndex) -> Record:
    label = operator.index(index) % len(self.class_names)
    picture = np.random.default_rng(label).integers(
      64, 192, self._shape, dtype=np.uint8
    )
    noise = np.random.default_rng((1, operator.index(index))).integers(
      0, 64, self._shape, dtype=np.uint8
    )
    return {"image": picture + noise, "label": label}

  def name(self, index: SupportsIndex) -> str:
    return f"synthetic image {operator.index(index)}"

  def identity(self) -> Identity:
    """Returns what tells these records apart from others."""
    return {"classes": len(self.class_names), "shape": list(self._shape)}


def open_synthetic(
  split: str, image_size: ImageSize, num_classes: int
) -> SyntheticSource:
  """Returns one of the splits of `SYNTHETIC_SIZES`.

  Raises:
    ValueError: if there is no such split, or no such number of classes.
  """
  if split not in SYNTHETIC_SIZES:
    raise ValueError(
      f"data set 'synthetic' has no split {split!r}: use one of "
      f"{', '.join(SYNTHETIC_SIZES)}"
    )
  if not 1 <= num_classes <= MAX_SYNTHETIC_CLASSES:
    raise ValueError(
      f"data set 'synthetic' cannot have {num_classes} classes: use 1 to "
      f"{MAX_SYNTHETIC_CLASSES:,}"
    )
  return SyntheticSource(SYNTHETIC_SIZES[split], image_size, num_classes)


def is_multi_label(source: Source) -> bool:
  """Whether a record of a source may have several labels."""
  return getattr(source, "multi_label", False)


def label_shape(source: Source) -> tuple[int, ...]:
  """Returns the shape of a label: (), or [classes]."""
  return (len(source.class_names),) if is_multi_label(source) else ()


def labels_of(source: Source) -> np.ndarray:
  """Returns the labels of all records, int [n] or uint8 [n, classes]."""
  if (labels := getattr(source, "labels", None)) is not None:
    return np.asarray(labels)
  return np.asarray([source[i]["label"] for i in range(len(source))])


def fetched(source: Source, indices: np.ndarray) -> Source:
  """Returns a source whose records of some indices are fetched together.

  A source to which each record alone is a long way has a method of this name
  that does it.

  Args:
    source: the records.
    indices: indices of those that are read next, int [n].
  """
  fetch = getattr(source, "fetched", None)
  return source if fetch is None else fetch(indices)


class DecodedSource:
  """Another source, decoded once; broken images fail when they are used.

  Args:
    source: the records.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.
  """

  def __init__(self, source: Source, max_pixels: int = MAX_PIXELS):
    self.channels = source.channels
    self.multi_label = is_multi_label(source)
    self.class_names = source.class_names
    self._source = source
    self._max_pixels = max_pixels
    self._records = [self._decoded(index) for index in range(len(source))]

  def _decoded(self, index: int) -> Record | None:
    try:
      record = self._source[index]
      pixels = decode(record["image"], self.channels, self._max_pixels)
      return {**record, "image": pixels}
    except ImageError:
      return None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._records[index] or self._source[index]

  def name(self, index: SupportsIndex) -> str:
    return self._source.name(index)


class ArraySource:
  """Images and labels in memory.

  Args:
    images: uint8 [n, h, w, c], or [n, h, w] of gray images.
    labels: int [n]; or uint8 or bool [n, classes], with 1 for each class that
      an image has.
    class_names: names of the classes, by label.
    title: name of the whole in messages.

  Raises:
    ValueError: if these do not fit together.
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str = "the arrays",
  ):
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.shape[3:] not in ((1,), (3,)):
      raise ValueError(
        f"{title} has images of {images.dtype} {list(images.shape)}: use uint8 "
        "[n, h, w, c] with 1 or 3 channels"
      )
    self.multi_label = labels.ndim == 2
    if self.multi_label:
      _check_several(labels, len(images), class_names, title)
    elif labels.shape != (len(images),) or labels.dtype.kind not in "iu":
      raise ValueError(
        f"{title} has {len(images)} images and labels of {labels.dtype} "
        f"{list(labels.shape)}: use an integer for each image"
      )
    elif len(labels) and not (
      0 <= labels.min() <= labels.max() < len(class_names)
    ):
      raise ValueError(
        f"{title} has labels {labels.min()} to {labels.max()} and "
        f"{len(class_names)} classes: count from 0"
      )
    self.images = images
    self.labels = labels.astype(np.uint8 if self.multi_label else np.int32)
    self.channels = images.shape[-1]
    self.class_names = list(class_names)
    self._title = title

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = operator.index(index)
    label = self.labels[index]
    return {
      "image": self.images[index],
      "label": label if self.multi_label else int(label),
    }

  def name(self, index: SupportsIndex) -> str:
    return f"image {operator.index(index)} of {self._title}"

  def identity(self) -> Identity:
    """Returns what tells these records apart from others."""
    shape = f"{self.images.shape[1:]}".encode()
    images = np.ascontiguousarray(self.images)
    return identity_of_labels(self.class_names, self.labels, shape, images)


def _check_several(
  labels: np.ndarray, count: int, class_names: Sequence[str], title: str
) -> None:
  """Raises ValueError unless labels are 0 and 1 for each image and class."""
  shape = (count, len(class_names))
  kind = labels.dtype in (np.uint8, np.bool_)
  if labels.shape != shape or not kind or labels.max(initial=0) > 1:
    largest = f" up to {labels.max()}" if kind and labels.size else ""
    raise ValueError(
      f"{title} has {count} images, {len(class_names)} classes and labels of "
      f"{labels.dtype} {list(labels.shape)}{largest}: use 0 or 1, uint8 or "
      "bool, for each image and class"
    )


def open_npz(path: str | os.PathLike, split: str) -> ArraySource:
  """Returns a split of the arrays in a NumPy file.

  Args:
    path: a .npz file that holds, for each split, SPLIT_images, uint8
      [n, h, w, c], and SPLIT_labels, int [n], or uint8 or bool [n, classes]
      for several labels an image; and perhaps class_names, strings by label.
    split: a split in the notation of TFDS.

  Raises:
    ValueError: if there is no such split, or it holds something else.
    FileNotFoundError: if there is no such file.
  """
  arrays = _read_npz(path)
  if not (sizes := _npz_sizes(arrays)):
    raise ValueError(
      f"{path} holds the arrays {listing(arrays) or '(none)'}: call those of a "
      "split SPLIT_images and SPLIT_labels, such as train_images"
    )
  base, indices = parse_split(split, sizes)
  if (labels := arrays.get(f"{base}_labels")) is None:
    raise ValueError(f"{path} has {base}_images and no {base}_labels: add them")
  names = arrays.get("class_names")
  if names is None:
    # Of all splits: one may lack the last classes.
    known = [a for name, a in arrays.items() if name.endswith("_labels")]
    names = range(max(map(_num_classes, known)))
  names = [str(name) for name in names]
  if twice := [name for name, n in collections.Counter(names).items() if n > 1]:
    raise ValueError(
      f"class_names of {path} has {twice[0]!r} more than once: name each class "
      "otherwise"
    )
  whole = ArraySource(
    arrays[f"{base}_images"],
    labels,
    names,
    title=f"{base} in {path}",
  )
  return ArraySource(
    whole.images[indices],
    whole.labels[indices],
    whole.class_names,
    title=f"{split} in {path}",
  )


def npz_splits(path: str | os.PathLike) -> list[str]:
  """Returns the splits of a NumPy file, as `open_npz` reads it."""
  return list(_npz_sizes(_read_npz(path)))


def _npz_sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
  """Returns the number of records of each split."""
  return {
    name.removesuffix("_images"): len(images)
    for name, images in arrays.items()
    if name.endswith("_images") and images.ndim
  }


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the arrays of a NumPy file by name."""
  try:
    # Opened here, as NumPy leaves a file open that it cannot read.
    with (
      open(os.path.expanduser(path), "rb") as opened,
      np.load(opened, allow_pickle=False) as file,
    ):
      arrays = dict(file)
    for name, array in arrays.items():
      if not isinstance(array, np.ndarray):  # NumPy gives bytes as they are.
        raise ValueError(f"{name} is no array")
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"root is {path}, which is not there: give the path of a .npz file"
    ) from error
  except Exception as error:  # NumPy and zip raise whatever they meet.
    raise ValueError(
      f"{path} is not a NumPy file of plain arrays: {error}"
    ) from error
  return arrays


def _num_classes(labels: np.ndarray) -> int:
  """Returns the number of classes that labels speak of."""
  if labels.ndim == 2:
    return labels.shape[1]
  return int(np.max(labels, initial=0)) + 1


def parse_split(split: str, sizes: dict[str, int]) -> tuple[str, np.ndarray]:
  """Returns the name of a split and the indices of its records.

  Args:
    split: a split in the notation of https://www.tensorflow.org/datasets/splits:
      "train", "train[:80%]+train[90%:]".
    sizes: number of records of each split that there is.

  Raises:
    ValueError: if there is no such part, or nothing in it.
  """
  infos = tfds.core.SplitDict(
    [
      tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
      for name, size in sizes.items()
    ]
  )
  try:
    pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, AssertionError, NotImplementedError) as error:
    raise ValueError(no_split(split, sizes, error)) from error
  names = {piece.splitname for piece in pieces}
  ranges = [
    range(sizes[piece.splitname])[piece.from_ : piece.to] for piece in pieces
  ]
  if len(names) > 1 or not any(map(len, ranges)):
    raise ValueError(no_split(split, sizes))
  return names.pop(), np.concatenate(
    [np.arange(r.start, r.stop) for r in ranges if r]
  )


def no_split(
  split: str, sizes: Mapping[str, int], error: Exception | None = None
) -> str:
  """Returns a sentence on a split that is not there, or has no records.

  Args:
    split: a split in the notation of TFDS.
    sizes: number of records of each split that there is.
    error: what TFDS says about it, if anything.
  """
  base = split.split("[")[0]
  empty = error is None or "incompatible" in str(error)  # TFDS's word.
  if empty and base in sizes and "+" not in split:
    return (
      f"split {split!r} is empty, of the {sizes[base]:,} records of {base!r}: "
      "use another part, such as 'train[:90%]'"
    )
  return (
    f"there is no split {split!r}: use one of {', '.join(sizes)}, or a part of "
    "one, such as 'train[:90%]'"
  )


def stratified_order(
  labels: Sequence[int] | np.ndarray, seed: int
) -> np.ndarray:
  """Returns an order of records in which every stretch has all classes alike.

  Each class is shuffled, and its records are spread evenly over the whole: so
  the first 80 % hold 80 % of each class, to one record.

  Args:
    labels: labels of the records.
    seed: seed of the shuffles.
  """
  classes = np.asarray(labels)
  rng = np.random.default_rng(seed)
  ranks = np.empty(len(classes))
  by_class = np.argsort(classes, kind="stable")
  starts = np.flatnonzero(np.diff(classes[by_class])) + 1
  for members in np.split(by_class, starts):
    spread = (np.arange(len(members)) + 0.5) / len(members)
    ranks[rng.permutation(members)] = spread
  return np.argsort(ranks, kind="stable")


def part_of(split: str, labels: np.ndarray, seed: int) -> np.ndarray | None:
  """Returns the records of a part of a split, of `stratified_order`, int32 [n].

  None for the whole, in its own order.

  Args:
    split: a split in the notation of TFDS.
    labels: labels of the records of the whole, int [n].
    seed: seed of the order.

  Raises:
    ValueError: if there is no such part, or nothing in it.
  """
  base, *part = split.split("[")
  if not part:
    return None
  _, chosen = parse_split(split, {base: len(labels)})
  return stratified_order(labels, seed)[chosen].astype(np.int32)
