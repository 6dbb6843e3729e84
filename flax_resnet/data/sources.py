"""Records by index: step 1 of the way of a batch."""

from collections.abc import Sequence
import operator
import os
from typing import Protocol, runtime_checkable, SupportsIndex, TypedDict

import numpy as np

from flax_resnet.data import splits
from flax_resnet.data.decoding import decode, ImageError


class Record(TypedDict):
  """One example: an encoded file, or uint8 [h, w, c], and its class."""

  image: bytes | np.ndarray
  label: int


@runtime_checkable
class Source(Protocol):
  """Examples by index; safe to read from several threads at once.

  Attributes:
    channels: 1 for grey, 3 for RGB; what the images are decoded to.
    class_names: By label.
  """

  @property
  def channels(self) -> int: ...

  @property
  def class_names(self) -> Sequence[str]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex, /) -> Record: ...

  def name(self, index: SupportsIndex, /) -> str: ...


class SyntheticSource:
  """Noise around one random picture a class; for benchmarks and tests.

  Args:
    num_examples: How many records.
    image_size: Height and width.
    num_classes: Labels run from 0 to `num_classes - 1`.
  """

  channels = 3

  def __init__(self, num_examples: int, image_size: int, num_classes: int):
    self._num_examples = num_examples
    self._shape = (image_size, image_size, self.channels)
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
    """Returns what a record is called in messages."""
    return f"synthetic image {operator.index(index)}"


class ArraySource:
  """Images and labels in memory.

  Args:
    images: uint8 [n, h, w, c], or [n, h, w] of grey ones.
    labels: int [n].
    class_names: By label.
    title: What the whole is called in messages.

  Raises:
    ValueError: When these do not fit together.
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
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
      raise ValueError(
        f"{title} has {len(images)} images and labels of {labels.dtype} "
        f"{list(labels.shape)}: use an integer for each image"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
      raise ValueError(
        f"{title} has labels {labels.min()} to {labels.max()} and "
        f"{len(class_names)} classes: count from 0"
      )
    self.images, self.labels = images, labels.astype(np.int32)
    self.channels = images.shape[-1]
    self.class_names = list(class_names)
    self._title = title

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = operator.index(index)
    return {"image": self.images[index], "label": int(self.labels[index])}

  def name(self, index: SupportsIndex) -> str:
    """Returns what a record is called in messages."""
    return f"image {operator.index(index)} of {self._title}"


class InMemory:
  """Another source, decoded once; what is broken is left to fail when used."""

  def __init__(self, source: Source):
    self.channels = source.channels
    self.class_names = source.class_names
    self._source = source
    self._records = [self._decoded(index) for index in range(len(source))]

  def _decoded(self, index: int) -> Record | None:
    try:
      record = self._source[index]
      return Record(
        image=decode(record["image"], self.channels), label=record["label"]
      )
    except ImageError:
      return None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._records[index] or self._source[index]

  def name(self, index: SupportsIndex) -> str:
    """Returns what a record is called in messages."""
    return self._source.name(index)


def open_npz(path: str | os.PathLike, split: str) -> ArraySource:
  """Returns a part of the arrays in a NumPy file.

  Args:
    path: Of a .npz with SPLIT_images, uint8 [n, h, w, c], SPLIT_labels, int
      [n], of each split, and perhaps class_names, strings by label.
    split: In TFDS's notation.

  Raises:
    ValueError: When there is no such split, or it holds something else.
    FileNotFoundError: When there is no such file.
  """
  try:
    with np.load(os.path.expanduser(path), allow_pickle=False) as file:
      arrays = dict(file)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"root is {path}, which is not there: give the path of a .npz file"
    ) from error
  except Exception as error:  # NumPy and zip raise whatever they meet.
    raise ValueError(
      f"{path} is not a NumPy file of plain arrays: {error}"
    ) from error
  sizes = {
    name.removesuffix("_images"): len(images)
    for name, images in arrays.items()
    if name.endswith("_images") and images.ndim
  }
  base, indices = splits.part(split, sizes)
  if (labels := arrays.get(f"{base}_labels")) is None:
    raise ValueError(f"{path} has {base}_images and no {base}_labels: add them")
  names = arrays.get("class_names")
  if names is None:
    names = range(int(np.max(labels, initial=0)) + 1)
  whole = ArraySource(
    arrays[f"{base}_images"],
    labels,
    [str(name) for name in names],
    title=f"{base} in {path}",
  )
  return ArraySource(
    whole.images[indices], whole.labels[indices], whole.class_names
  )
