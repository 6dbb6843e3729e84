"""Which record is at which place of a run, and its random numbers.

A run is a row of places, `batch_size` of them a step. Which record is at a
place, and which random numbers its transform draws, depends on nothing but the
seed and the place: so not on hosts, workers and restarts.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

# Keys of the shuffles, above those of the places of a run.
_ORDER = 2**63


@dataclasses.dataclass(frozen=True)
class Share:
  """Which rows of each batch a host reads.

  Attributes:
    batch_size: Of the global batch.
    first_step: How many batches of the run to leave out.
    shard_index: Which host this is.
    shard_count: Of how many.
  """

  batch_size: int
  first_step: int = 0
  shard_index: int = 0
  shard_count: int = 1

  @property
  def rows(self) -> int:
    """How many rows of a batch these are."""
    return self.batch_size // self.shard_count

  def places(self, start: int, count: int) -> np.ndarray:
    """Returns places in the run of `count` of this host's, of one batch."""
    step, row = divmod(start, self.rows)
    first = (self.first_step + step) * self.batch_size
    first += self.shard_index * self.rows + row
    return np.arange(first, first + count)


class Order:
  """One shuffled epoch after the other, by place.

  Args:
    num_records: In the set.
    seed: Of the shuffles.
    batch_size: Of the global batch.
    copies: How often a record is in a batch: repeated augmentation (Hoffer et
      al. 2020, arXiv:1901.09335). The copies of a batch lie far apart in it.

  Raises:
    ValueError: When the copies do not fill a batch.
  """

  def __init__(
    self, num_records: int, seed: int, batch_size: int, copies: int = 1
  ):
    if copies < 1 or batch_size % copies:
      raise ValueError(
        f"repeated_augmentation is {copies}, which does not divide the batch "
        f"size {batch_size}: use a divisor of it"
      )
    self._num_records, self._seed = num_records, seed
    self._batch_size, self._distinct = batch_size, batch_size // copies

  def __call__(self, places: np.ndarray) -> np.ndarray:
    """Returns the records at places of the run."""
    step, row = np.divmod(places, self._batch_size)
    drawn = step * self._distinct + row % self._distinct
    epochs, within = np.divmod(drawn, self._num_records)
    records = np.empty(len(places), np.int32)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      shuffled = _shuffled(self._num_records, self._seed, int(epoch))
      records[here] = shuffled[within[here]]
    return records


@functools.lru_cache(maxsize=4)
def _shuffled(num_records: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the records of an epoch: 4 bytes each, so few are kept."""
  rng = generator(seed, _ORDER + epoch)
  return rng.permutation(np.arange(num_records, dtype=np.int32))


class _Key(ISeedSequence):
  """The key of a Philox, whose own argument for it would fetch entropy too."""

  def __init__(self, *words: int):
    self._words = words

  def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
    del n_words
    return np.array(self._words, dtype)


def generator(seed: int, place: int) -> np.random.Generator:
  """Returns the generator of a place: keyed, so that it costs no hashing."""
  # NumPy takes any ISeedSequence; its types know only of SeedSequence.
  philox = np.random.Philox(_Key(seed, place))  # pyright: ignore[reportArgumentType]
  return np.random.Generator(philox)
