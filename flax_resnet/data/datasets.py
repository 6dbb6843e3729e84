"""A data set: its records, what is done to them, its batches."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

import numpy as np

from flax_resnet.data import arrays, order, pipeline, sources
from flax_resnet.data.reading import ArrayReader, Batch, RecordReader


class Tally:
  """Counts the broken images that were skipped."""

  def __init__(self):
    self._count = 0

  def add(self, count: int) -> None:
    self._count += count

  def take(self) -> int:
    """Returns how many there were since the last call."""
    count, self._count = self._count, 0
    return count


@dataclasses.dataclass(frozen=True)
class Split:
  """Records and what is done to each on the host.

  Attributes:
    source: The records.
    reader: Reads and transforms them.
    workers: Who reads.
    random: Whether a record becomes another image each time.
    early: What reads before, if something else does: (share of the run until
      which, reader), in order.
    copies: How often a record is in a batch of training.
    skips: Whether broken images are skipped.
    skipped: Counts those.
  """

  source: sources.Source
  reader: RecordReader | ArrayReader
  workers: pipeline.Workers
  random: bool = False
  early: Sequence[tuple[float, RecordReader]] = ()
  copies: int = 1
  skips: bool = False
  skipped: Tally = dataclasses.field(default_factory=Tally)

  def __len__(self) -> int:
    return len(self.source)

  def check(self, batch_size: int) -> None:
    """Raises ValueError unless batches of this size can be filled."""
    order.Order(len(self), 0, batch_size, self.copies)

  def train_batches(
    self, *, seed: int, num_steps: int = 0, **share: int
  ) -> Iterator[Batch]:
    """See `pipeline.train_batches` and `order.Share`.

    Args:
      seed: See there.
      num_steps: Of the whole run, to know where `early` ends.
      **share: See `order.Share`.
    """
    whole = order.Share(**share)
    for reader, first, end in self._readers(whole.first_step, num_steps):
      batches = pipeline.train_batches(
        reader,
        dataclasses.replace(whole, first_step=first),
        seed=seed,
        copies=self.copies,
        workers=self.workers,
      )
      number = None if end is None else end - first
      yield from self._counted(itertools.islice(batches, number))

  def _readers(
    self, first_step: int, num_steps: int
  ) -> Iterator[tuple[RecordReader | ArrayReader, int, int | None]]:
    """Yields who reads from which step on until which."""
    for until, reader in self.early:
      if first_step < (end := round(until * num_steps)):
        yield reader, first_step, end
        first_step = end
    yield self.reader, first_step, None

  def train_indices(self, *, seed: int, **share: int) -> Iterator[np.ndarray]:
    """See `pipeline.train_indices` and `order.Share`."""
    return pipeline.train_indices(
      len(self), order.Share(**share), seed=seed, copies=self.copies
    )

  def eval_batches(self, **share: int) -> Iterator[Batch]:
    """See `pipeline.eval_batches` and `order.Share`."""
    batches = pipeline.eval_batches(
      self.reader, order.Share(**share), workers=self.workers
    )
    return self._counted(batches)

  def arrays(self) -> Batch:
    """Returns all records as one batch, in the order of their indices.

    Raises:
      ValueError: When the transform gives another image each time.
    """
    if self.random:
      raise ValueError("random crops and policies make another image each time")
    return next(self.eval_batches(batch_size=len(self)))

  def in_memory(self) -> "Split":
    """Returns the same split, read once and kept."""
    if isinstance(self.reader, RecordReader) and self.random:
      source = sources.InMemory(self.source)
      reader, *others = (
        dataclasses.replace(reader, source=source)
        for reader in (self.reader, *(reader for _, reader in self.early))
      )
      untils = [until for until, _ in self.early]
      early = tuple(zip(untils, others, strict=True))
      return dataclasses.replace(
        self, source=source, reader=reader, early=early
      )
    share = order.Share(len(self))
    whole = next(
      pipeline.eval_batches(self.reader, share, workers=self.workers)
    )
    source = arrays.ArraySource(
      whole["image"], whole["label"], self.source.class_names
    )
    reader = ArrayReader(source, whole["mask"], whole["broken"])
    return dataclasses.replace(self, source=source, reader=reader)

  def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
      self.skipped.add(int(batch.pop("broken").sum()))
      yield batch


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What `load` returns.

  Attributes:
    train: The split to train on.
    eval: The split to evaluate on.
    image_shape: [h, w, c] of every image that is trained on.
    class_names: By label.
  """

  train: Split
  eval: Split
  image_shape: tuple[int, int, int]
  class_names: Sequence[str]
