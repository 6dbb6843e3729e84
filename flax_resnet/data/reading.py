"""From the indices of records to uint8 images with labels, stacked."""

from collections.abc import Iterable
import dataclasses
import math
from typing import Any, Literal, Protocol
import warnings

import numpy as np

from flax_resnet.data.arrays import ArraySource
from flax_resnet.data.jpeg import ImageError
from flax_resnet.data.sources import Source
from flax_resnet.data.transforms import Transform

# {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b]}
Batch = dict[str, np.ndarray]

# What is done about a broken image: tell it and end; take the next record that
# is not broken, for training; leave it out, for evaluation.
OnError = Literal["stop", "replace", "leave_out"]


class Reader(Protocol):
  """Reads several records; safe to use from several threads at once.

  Attributes:
    image_shape: [h, w, c] of every image.
    at_a_time: The most records that a worker reads together.
  """

  @property
  def image_shape(self) -> tuple[int, ...]: ...

  @property
  def at_a_time(self) -> int: ...

  def __len__(self) -> int: ...

  def read(
    self, indices: np.ndarray, rngs: Iterable[np.random.Generator]
  ) -> Batch:
    """Returns the batch, and "broken", bool [b]: which were replaced.

    Args:
      indices: Of the records, int [b].
      rngs: The generator of each.
    """
    ...


@dataclasses.dataclass(frozen=True)
class RecordReader:
  """Reads records one by one and transforms their images.

  Attributes:
    source: The records.
    transform: What is done to each image.
    image_shape: [h, w, c] of what the transform returns.
    on_error: What to do about a broken image.
  """

  source: Source
  transform: Transform
  image_shape: tuple[int, ...]
  on_error: OnError = "stop"

  at_a_time = 64

  def __len__(self) -> int:
    return len(self.source)

  def read(
    self, indices: np.ndarray, rngs: Iterable[np.random.Generator]
  ) -> Batch:
    """Returns the batch, and "broken", see `Reader`.

    Raises:
      ImageError: At a broken image, if that is to stop; with its name.
    """
    batch = room(self.image_shape, len(indices))
    for row, (index, rng) in enumerate(zip(indices, rngs, strict=True)):
      for key, value in self._example(int(index), rng).items():
        batch[key][row] = value
    return batch

  def _example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns an example; a black one for a broken one that is left out."""
    for offset in range(len(self)):
      at = (index + offset) % len(self)
      try:
        record = self.source[at]
        image = self.transform(record["image"], rng)
      except ImageError as error:
        told = f"{self.source.name(at)}: {error}"
        if self.on_error == "stop":
          raise ImageError(
            f"{told}: mend or remove it, or set config.data.on_error='skip'"
          ) from error
        warnings.warn(f"skipped {told}", stacklevel=2)
        if self.on_error == "leave_out":
          return {"image": 0, "label": 0, "mask": False, "broken": True}
      else:
        label, broken = record["label"], offset > 0
        return {"image": image, "label": label, "mask": True, "broken": broken}
    raise ImageError(f"all {len(self):,} images are broken")


@dataclasses.dataclass(frozen=True)
class ArrayReader:
  """Takes images of one size from memory as they are: no work but copying.

  Attributes:
    source: The images, and which of them count.
    mask: Which records count, bool [n].
    broken: Which were replaced when the source was made, bool [n].
  """

  source: ArraySource
  mask: np.ndarray
  broken: np.ndarray

  at_a_time = 1024

  @property
  def image_shape(self) -> tuple[int, ...]:
    """[h, w, c]."""
    return self.source.images.shape[1:]

  def __len__(self) -> int:
    return len(self.source)

  def read(
    self, indices: np.ndarray, rngs: Iterable[np.random.Generator]
  ) -> Batch:
    """Returns the batch, and "broken", see `Reader`."""
    del rngs
    batch = room(self.image_shape, len(indices))
    np.take(self.source.images, indices, axis=0, out=batch["image"])
    batch["label"][:] = self.source.labels[indices]
    batch["mask"][:] = self.mask[indices]
    batch["broken"][:] = self.broken[indices]
    return batch


def blank(image_shape: tuple[int, ...], count: int) -> Batch:
  """Returns a batch of black images that do not count."""
  batch = room(image_shape, count)
  for array in batch.values():
    array.fill(0)
  return batch


def room(image_shape: tuple[int, ...], count: int) -> Batch:
  """Returns a batch with anything in it."""
  return {
    "image": aligned((count, *image_shape), np.dtype(np.uint8)),
    "label": aligned((count,), np.dtype(np.int32)),
    "mask": aligned((count,), np.dtype(bool)),
    "broken": aligned((count,), np.dtype(bool)),
  }


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns an array with anything in it that begins at a multiple of 64 bytes.

  JAX takes such an array to a CPU device without a copy.
  """
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)
