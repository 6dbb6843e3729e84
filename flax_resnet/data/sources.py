"""Records by index: step 1 of the way of a batch."""

from collections.abc import Sequence
import operator
from typing import Protocol, runtime_checkable, SupportsIndex, TypedDict

import numpy as np

from flax_resnet.data.decoding import decode
from flax_resnet.data.jpeg import ImageError


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
