"""Batches, whose order is a function of (seed, step): step 3 of the way.

Batches are {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b]}.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import grain
import numpy as np

from flax_resnet.data.sources import Source
from flax_resnet.data.transforms import Transform

Batch = dict[str, np.ndarray]


def train_batches(
  source: Source,
  transform: Transform,
  *,
  batch_size: int,
  seed: int,
  first_step: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
  num_threads: int = 4,
) -> Iterator[Batch]:
  """Yields this host's part of the batch of each step, without end.

  The stream is one shuffled epoch after the other, each record once in each;
  batches run across the border of epochs. Host i of n gets the i-th n-th of
  each global batch, so all hosts together read the same stream for every n.

  Args:
    source: Where records come from.
    transform: What is done to each image, with a generator seeded by (seed,
      place of the record in the run).
    batch_size: Of the global batch.
    seed: Of the order and of the transform.
    first_step: How many batches of the stream to leave out.
    shard_index: Which host this is.
    shard_count: Of how many.
    num_threads: How many batches are made at the same time.
  """

  def finish(record, rng):
    return _example(transform(record["image"], rng), record["label"], True)

  records = grain.MapDataset.source(cast(Sequence, source))
  batches = _part_of_host(
    _in_order(records, seed).random_map(finish),
    batch_size,
    first_step,
    shard_index,
    shard_count,
  )
  return _iterate(batches, num_threads)


def train_indices(
  num_records: int,
  *,
  batch_size: int,
  seed: int,
  first_step: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
) -> Iterator[np.ndarray]:
  """Yields which records `train_batches` has in each batch, int32 [b]."""
  batches = _part_of_host(
    _in_order(grain.MapDataset.range(num_records), seed),
    batch_size,
    first_step,
    shard_index,
    shard_count,
  )
  return (np.asarray(indices, np.int32) for indices in _iterate(batches, 1))


def _in_order(records: grain.MapDataset, seed: int) -> grain.MapDataset:
  """One shuffled epoch after the other."""
  return records.seed(seed).shuffle().repeat()


def _part_of_host(
  examples: grain.MapDataset,
  batch_size: int,
  first_step: int,
  shard_index: int,
  shard_count: int,
) -> grain.MapDataset:
  """A host's part of batch s is at s * shard_count + shard_index."""
  first = first_step * shard_count + shard_index
  return examples.batch(batch_size // shard_count).slice(
    slice(first, None, shard_count)
  )


def eval_batches(
  source: Source,
  transform: Transform,
  *,
  batch_size: int,
  shard_index: int = 0,
  shard_count: int = 1,
  num_threads: int = 4,
) -> Iterator[Batch]:
  """Yields this host's part of batches that hold every record once, in order.

  The last batch is filled up with blank images whose `mask` is False.

  Args:
    source: Where records come from.
    transform: What is done to each image.
    batch_size: Of the global batch.
    shard_index: Which host this is.
    shard_count: Of how many.
    num_threads: How many batches are made at the same time.
  """
  rng = np.random.default_rng(0)  # Evaluation draws nothing from it.
  blank = np.zeros_like(transform(source[0]["image"], rng))

  def example(index):
    if index >= len(source):
      return _example(blank, 0, False)
    record = source[index]
    return _example(transform(record["image"], rng), record["label"], True)

  filled = -(-len(source) // batch_size) * batch_size
  batches = (
    grain.MapDataset.range(filled)
    .map(example)
    .batch(batch_size // shard_count)
    .slice(slice(shard_index, None, shard_count))
  )
  return _iterate(batches, num_threads)


def _example(image: np.ndarray, label: int, real: bool) -> Batch:
  return {
    "image": image,
    "label": np.asarray(label, np.int32),
    "mask": np.asarray(real),
  }


def _iterate(batches: grain.MapDataset, num_threads: int) -> Iterator[Any]:
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * num_threads
  )
  return iter(batches.to_iter_dataset(options))
