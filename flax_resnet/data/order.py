"""The order of records in a run, and the random numbers of each.

A run is a row of positions, `batch_size` of them a step. The record at a
position, and the random numbers that its transform draws, depend on nothing but
the seed and the position: so not on hosts, workers and restarts.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

# Keys of the shuffles, above those of the positions of a run.
_SHUFFLES = 2**63
# Keys of the shuffles of a class, above those of the epochs.
_CLASS_SHUFFLES = _SHUFFLES + 2**62


@dataclasses.dataclass(frozen=True)
class HostShard:
  """The rows of each batch that a host reads.

  Attributes:
    batch_size: examples of the global batch.
    first_step: batches of the run to leave out; default 0.
    shard_index: index of this host; default 0.
    shard_count: number of hosts; default 1.
  """

  batch_size: int
  first_step: int = 0
  shard_index: int = 0
  shard_count: int = 1

  @property
  def rows(self) -> int:
    """Rows of a batch that this host reads."""
    return self.batch_size // self.shard_count

  def positions(self, start: int, count: int) -> np.ndarray:
    """Returns the positions in the run of `count` rows of one batch, int [b].

    Args:
      start: first of the rows, counted from this host's first row of its first
        batch.
      count: number of rows.
    """
    step, row = divmod(start, self.rows)
    first = (self.first_step + step) * self.batch_size
    first += self.shard_index * self.rows + row
    return np.arange(first, first + count)


class Order:
  """One shuffled epoch after the other, by position.

  With `labels`, classes are drawn equally often: an epoch has as many records
  as before, of each class as many as of any other, to one. The records of a
  class come in turn, each once before any comes again.

  Args:
    num_records: number of records in the set.
    seed: seed of the shuffles.
    batch_size: examples of the global batch.
    repeats: times that a record is in a batch, default 1: repeated augmentation
      (Hoffer et al. 2020, arXiv:1901.09335). They lie far apart in the batch.
    labels: labels of the records, int [n], for classes that are drawn equally
      often; None (default) for records that are.

  Raises:
    ValueError: if the repeats do not fill a batch.
  """

  def __init__(
    self,
    num_records: int,
    seed: int,
    batch_size: int,
    repeats: int = 1,
    labels: np.ndarray | None = None,
  ):
    if batch_size % repeats:
      raise ValueError(
        f"repeated_augmentation is {repeats}, which does not divide the batch "
        f"size {batch_size}: use a divisor of it"
      )
    self._num_records, self._seed = num_records, seed
    self._batch_size, self._distinct = batch_size, batch_size // repeats
    self._classes = None if labels is None else _by_class(labels)

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Returns the indices of the records at positions of the run, int32 [b]."""
    step, row = np.divmod(positions, self._batch_size)
    drawn = step * self._distinct + row % self._distinct
    epochs, within = np.divmod(drawn, self._num_records)
    records = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs):
      rows = epochs == epoch
      records[rows] = self._epoch(int(epoch))[within[rows]]
    return records

  def _epoch(self, epoch: int) -> np.ndarray:
    """Returns the records of an epoch in their order, int32 [n]."""
    if self._classes is None:
      return _shuffled(self._num_records, self._seed, epoch)
    return _balanced_epoch(self._num_records, self._seed, epoch, self._classes)


@functools.lru_cache(maxsize=4)
def _shuffled(num_records: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the records of an epoch: 4 bytes each, so few are kept."""
  rng = generator(seed, _SHUFFLES + epoch)
  return rng.permutation(np.arange(num_records, dtype=np.int32))


class _Classes(tuple):
  """The records of each class; equal only to itself, as a key of a cache."""

  __slots__ = ()
  __hash__ = object.__hash__
  __eq__ = object.__eq__


def _by_class(labels: np.ndarray) -> _Classes:
  """Returns the records of each class that has any, by label."""
  order = np.argsort(labels, kind="stable").astype(np.int32)
  _, starts = np.unique(labels[order], return_index=True)
  return _Classes(np.split(order, starts[1:]))


@functools.lru_cache(maxsize=4)
def _balanced_epoch(
  num_records: int, seed: int, epoch: int, classes: _Classes
) -> np.ndarray:
  """Returns the records of an epoch, of all classes equally many.

  Of the places of a run, in the order before an epoch is shuffled, place g is
  of class g modulo their number.
  """
  places = epoch * num_records + _shuffled(num_records, seed, epoch).astype(
    np.int64
  )
  draws, numbers = np.divmod(places, len(classes))
  records = np.empty(num_records, np.int32)
  for number, members in enumerate(classes):
    rows = numbers == number
    drawn, count = draws[rows], len(members)
    first, last = int(drawn.min()) // count, int(drawn.max()) // count
    key = _CLASS_SHUFFLES + (number << 36)
    in_turn = [
      generator(seed, key + turn).permutation(members)
      for turn in range(first, last + 1)
    ]
    records[rows] = np.concatenate(in_turn)[drawn - first * count]
  return records


class _Key(ISeedSequence):
  """The key of a Philox, whose own argument for it would fetch entropy too."""

  def __init__(self, *words: int):
    self._words = words

  def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
    del n_words
    return np.array(self._words, dtype)


def generator(seed: int, position: int) -> np.random.Generator:
  """Returns the generator of a position: keyed, so that it costs no hashing."""
  # NumPy takes any ISeedSequence; its types know only of SeedSequence.
  philox = np.random.Philox(_Key(seed, position))  # pyright: ignore[reportArgumentType]
  return np.random.Generator(philox)
