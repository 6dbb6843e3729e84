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

  Args:
    num_records: number of records in the set.
    seed: seed of the shuffles.
    batch_size: examples of the global batch.
    repeats: times that a record is in a batch, default 1: repeated augmentation
      (Hoffer et al. 2020, arXiv:1901.09335). They lie far apart in the batch.

  Raises:
    ValueError: if the repeats do not fill a batch.
  """

  def __init__(
    self, num_records: int, seed: int, batch_size: int, repeats: int = 1
  ):
    if batch_size % repeats:
      raise ValueError(
        f"repeated_augmentation is {repeats}, which does not divide the batch "
        f"size {batch_size}: use a divisor of it"
      )
    self._num_records, self._seed = num_records, seed
    self._batch_size, self._distinct = batch_size, batch_size // repeats

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Returns the indices of the records at positions of the run, int32 [b]."""
    step, row = np.divmod(positions, self._batch_size)
    drawn = step * self._distinct + row % self._distinct
    epochs, within = np.divmod(drawn, self._num_records)
    records = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs):
      rows = epochs == epoch
      shuffled = _shuffled(self._num_records, self._seed, int(epoch))
      records[rows] = shuffled[within[rows]]
    return records


@functools.lru_cache(maxsize=4)
def _shuffled(num_records: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the records of an epoch: 4 bytes each, so few are kept."""
  rng = generator(seed, _SHUFFLES + epoch)
  return rng.permutation(np.arange(num_records, dtype=np.int32))


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
