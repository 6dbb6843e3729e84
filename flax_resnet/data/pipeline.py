"""Batches, whose order is a function of (seed, step): step 3 of the way.

Batches are {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b]},
the label uint8 [b, classes] where an image may have several.

Hosts, workers and restarts only say who reads a record, and when; `data.order`
says which it is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import logging
import math
import sys
from typing import Annotated, Any
import warnings

from absl import flags
import grain
import numpy as np

from flax_resnet.data.crops import Transform
from flax_resnet.data.order import generator, HostShard, Order
from flax_resnet.data.sources import (
  ArraySource,
  fetched,
  label_shape,
  OnError,
  Source,
)
from flax_resnet.errors import ImageError, RunError
from flax_resnet.schema import Range

# {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b]}
Batch = dict[str, np.ndarray]
NumWorkers = Annotated[int, Range(minimum=0, maximum=256)]


@dataclasses.dataclass(frozen=True)
class RecordReader:
  """Reads records one by one and transforms their images.

  Safe to use from several threads at once.

  Attributes:
    source: the records.
    transform: function of each image and its generator.
    image_shape: [h, w, c] of what the transform returns.
    on_error: "stop" (default) at a broken image, or "skip" it.
    replace: whether the next sound record takes the place of one that is
      skipped, as training needs; if not (default), its mask is False.
  """

  source: Source
  transform: Transform
  image_shape: tuple[int, ...]
  on_error: OnError = "stop"
  replace: bool = False

  chunk_size = 64  # Records that a worker reads together, at most.

  def __len__(self) -> int:
    return len(self.source)

  def empty(self, count: int) -> Batch:
    """Returns a batch whose arrays are not initialized."""
    return _empty_batch(self.image_shape, label_shape(self.source), count)

  def read(
    self, indices: np.ndarray, rngs: Iterable[np.random.Generator]
  ) -> Batch:
    """Returns a batch, and "broken", bool [b]: which images were skipped.

    Args:
      indices: indices of the records, int [b].
      rngs: generators of the records' transforms.

    Raises:
      ImageError: at a broken image, with its name, if that is to stop; if all
        are broken.
    """
    batch, source = self.empty(len(indices)), fetched(self.source, indices)
    for row, (index, rng) in enumerate(zip(indices, rngs, strict=True)):
      for key, value in self._example(source, int(index), rng).items():
        batch[key][row] = value
    return batch

  def _example(
    self, source: Source, index: int, rng: np.random.Generator
  ) -> dict[str, Any]:
    """Returns an example; a black one for a broken image that is left out."""
    for offset in range(len(self)):
      current = (index + offset) % len(self)
      try:
        record = source[current]
        image = self.transform(record["image"], rng)
      except ImageError as error:
        problem = f"{self.source.name(current)}: {error}"
        if self.on_error == "stop":
          raise ImageError(
            f"{problem}: mend or remove it, or set config.data.on_error='skip'"
          ) from error
        warnings.warn(f"skipped {problem}", stacklevel=2)
        if not self.replace:
          return {"image": 0, "label": 0, "mask": False, "broken": True}
      else:
        label, broken = record["label"], offset > 0
        return {"image": image, "label": label, "mask": True, "broken": broken}
    raise ImageError(f"all {len(self):,} images are broken")


@dataclasses.dataclass(frozen=True)
class ArrayReader:
  """Takes images of one size from memory as they are: no work but copying.

  Attributes:
    source: images and labels.
    mask: whether each record counts, bool [n].
    broken: whether each record was skipped when the source was made, bool [n].
  """

  source: ArraySource
  mask: np.ndarray
  broken: np.ndarray

  chunk_size = 1024

  @property
  def image_shape(self) -> tuple[int, ...]:
    """[h, w, c]."""
    return self.source.images.shape[1:]

  def __len__(self) -> int:
    return len(self.source)

  def empty(self, count: int) -> Batch:
    """Returns a batch whose arrays are not initialized."""
    return _empty_batch(self.image_shape, label_shape(self.source), count)

  def read(
    self, indices: np.ndarray, rngs: Iterable[np.random.Generator]
  ) -> Batch:
    """Returns a batch, and "broken", as `RecordReader.read` does."""
    del rngs
    batch = self.empty(len(indices))
    np.take(self.source.images, indices, axis=0, out=batch["image"])
    batch["label"][:] = self.source.labels[indices]
    batch["mask"][:] = self.mask[indices]
    batch["broken"][:] = self.broken[indices]
    return batch


Reader = RecordReader | ArrayReader


def _empty_batch(
  image_shape: tuple[int, ...], label_shape: tuple[int, ...], count: int
) -> Batch:
  """Returns a batch whose arrays are not initialized."""
  label_dtype = np.dtype(np.uint8 if label_shape else np.int32)
  return {
    "image": _aligned((count, *image_shape), np.dtype(np.uint8)),
    "label": _aligned((count, *label_shape), label_dtype),
    "mask": _aligned((count,), np.dtype(bool)),
    "broken": _aligned((count,), np.dtype(bool)),
  }


def _padding(reader: Reader, count: int) -> Batch:
  """Returns a batch of black images whose mask is False."""
  batch = reader.empty(count)
  for array in batch.values():
    array.fill(0)
  return batch


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns an array, not initialized, that begins at a multiple of 64 bytes.

  JAX takes such an array to a CPU device without a copy: the two share their
  memory from then on, so each batch needs fresh arrays.
  """
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """Threads and processes that read ahead.

  Attributes:
    num_threads: threads of each process, 0 to 256; 0 to read when a batch is
      asked for; default 4.
    num_workers: processes beside this one, 0 to 256; default 0. Decoding holds
      no lock of Python's, so threads suffice until Python's own part, about a
      twentieth of the work, fills a core.
  """

  num_threads: NumWorkers = 4
  num_workers: NumWorkers = 0


def train_batches(
  reader: Reader,
  shard: HostShard,
  *,
  seed: int,
  repeats: int = 1,
  labels: np.ndarray | None = None,
  options: ReadOptions = ReadOptions(),
) -> Iterator[Batch]:
  """Yields this host's rows of the batch of each step, without end.

  Each record is there once an epoch; batches run across the border of epochs.

  Args:
    reader: reader of the records.
    shard: rows that this host reads, and the first step.
    seed: seed of the order and of the transforms' random numbers.
    repeats: times that a record is in a batch, as for `Order`; default 1.
    labels: labels of the records, as for `Order`; default None.
    options: threads and processes that read ahead.

  Yields:
    A batch, with "broken" as `RecordReader.read` has it.
  """
  order = Order(len(reader), seed, shard.batch_size, repeats, labels)

  def read(start: int, count: int) -> Batch:
    positions = shard.positions(start, count)
    rngs = (generator(seed, position) for position in positions.tolist())
    return reader.read(order(positions), rngs)

  num_batches = sys.maxsize // shard.rows
  return _batches(read, num_batches, shard.rows, reader.chunk_size, options)


def eval_batches(
  reader: Reader, shard: HostShard, *, options: ReadOptions = ReadOptions()
) -> Iterator[Batch]:
  """Yields this host's rows of batches that hold every record once, in order.

  The last batch is filled up with black images whose `mask` is False.

  Args:
    reader: reader of the records.
    shard: rows that this host reads.
    options: threads and processes that read ahead.

  Yields:
    A batch, with "broken" as `RecordReader.read` has it.
  """
  rng = np.random.default_rng(0)  # Evaluation draws nothing from it.

  def read(start: int, count: int) -> Batch:
    positions = shard.positions(start, count)
    indices = positions[positions < len(reader)]
    padding = _padding(reader, count - len(indices))
    if not len(indices):
      return padding
    return _join([reader.read(indices, [rng] * len(indices)), padding])

  num_batches = math.ceil(len(reader) / shard.batch_size)
  return _batches(read, num_batches, shard.rows, reader.chunk_size, options)


def _batches(
  read: Callable[[int, int], Batch],
  num_batches: int,
  rows: int,
  chunk_size: int,
  options: ReadOptions,
) -> Iterator[Batch]:
  """Yields batches that are read in chunks: a batch ahead, and one a worker.

  So memory depends on the size of a batch and not on the number of workers,
  and a batch is complete when the one before it is taken.

  Args:
    read: function of (start, count) that returns these rows.
    num_batches: number of batches.
    rows: rows of a batch.
    chunk_size: largest size of a chunk; the largest divisor of `rows` up to it
      is taken.
    options: threads and processes that read ahead.
  """
  size = max(n for n in range(1, min(chunk_size, rows) + 1) if rows % n == 0)
  per_batch, num_threads = rows // size, options.num_threads
  chunks = (
    grain.MapDataset.range(num_batches * per_batch)
    .map(lambda number: read(number * size, size))
    .to_iter_dataset(
      grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=(per_batch + num_threads) if num_threads else 0,
      )
    )
  )
  if options.num_workers:
    if not flags.FLAGS.is_parsed():  # Grain asks them; absl.app is not used.
      flags.FLAGS.mark_as_parsed()
    chunks = chunks.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=options.num_workers,
        per_worker_buffer_size=math.ceil(per_batch / options.num_workers) + 1,
      ),
      worker_init_fn=_warn_as_here(),
    )
  return _until_killed(iter(chunks.batch(per_batch, batch_fn=_join)))


def _until_killed(batches: Iterator[Batch]) -> Iterator[Batch]:
  """Yields batches; raises RunError when a process that reads them is gone."""
  try:
    yield from batches
  except RuntimeError as error:
    if "terminated unexpectedly" not in str(error):  # Grain's words.
      raise
    raise RunError(
      "a process that reads images was killed, as the system does when memory "
      "runs out: use a smaller config.data.num_workers; a run continues from "
      "its last checkpoint"
    ) from error


def _warn_as_here() -> Callable[[int, int], None]:
  """Returns a function that makes a worker process warn as this one does."""
  filters, form = list(warnings.filters), warnings.formatwarning
  level = logging.getLogger("PIL").level

  def init(worker: int, workers: int) -> None:
    del worker, workers
    # As `filterwarnings` leaves them; a list of its own would not be asked.
    warnings.filters[:] = filters  # pyright: ignore[reportIndexIssue]
    warnings.formatwarning = form
    logging.getLogger("PIL").setLevel(level)

  return init


def _join(chunks: Sequence[Batch]) -> Batch:
  if len(chunks) == 1:
    return chunks[0]
  count = sum(len(chunk["label"]) for chunk in chunks)
  image_shape, label_shape = (
    chunks[0][key].shape[1:] for key in ("image", "label")
  )
  batch = _empty_batch(image_shape, label_shape, count)
  for key, array in batch.items():
    np.concatenate([chunk[key] for chunk in chunks], out=array)
  return batch
