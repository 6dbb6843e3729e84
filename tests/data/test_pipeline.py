"""Batches are a function of (seed, step), whoever reads them."""

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flax_resnet.data import pipeline
from flax_resnet.data.order import generator, HostShard, Order
from flax_resnet.data.pipeline import ReadOptions, RecordReader


class Numbers:
  """Records whose image and label are their index."""

  channels = 1
  class_names = ("none",)

  def __init__(self, size):
    self.size = size

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    return {"image": np.full((1, 1, 1), index % 256, np.uint8), "label": index}

  def name(self, index):
    return f"number {index}"


def jitter(image, rng):
  """A transform whose random part can be read off the result."""
  return np.concatenate([image.ravel(), rng.integers(0, 256, 4)])


def numbers(size):
  """Returns a reader of `Numbers` as they are."""
  return RecordReader(Numbers(size), lambda image, rng: image, (1, 1, 1))


def jittered(size):
  """Returns a reader of `Numbers` with `jitter`."""
  return RecordReader(Numbers(size), jitter, (5,))


def stream(shard, count, size=20, seed=3, repeats=1, threads=0):
  """Returns the images of so many batches: the record, and what was drawn."""
  batches = pipeline.train_batches(
    jittered(size),
    shard,
    seed=seed,
    repeats=repeats,
    options=ReadOptions(threads),
  )
  taken = itertools.islice(batches, count)
  return np.stack([batch["image"] for batch in taken])


def test_a_batch_is_that_of_its_positions():
  """Whatever is in it follows from the order and the generator of each."""
  batches = pipeline.train_batches(
    jittered(20), HostShard(8, first_step=2), seed=3
  )
  for step in range(2, 8):
    batch = next(batches)
    positions = np.arange(8 * step, 8 * step + 8)
    records = Order(20, seed=3, batch_size=8)(positions)
    assert set(batch) == {"image", "label", "mask", "broken"}
    assert batch["label"].dtype == np.int32
    assert batch["mask"].all()
    assert not batch["broken"].any()
    np.testing.assert_array_equal(batch["label"], records)
    for row, position in enumerate(positions):
      expected = jitter(records[row], generator(3, int(position)))
      np.testing.assert_array_equal(batch["image"][row], expected)


@settings(max_examples=40, deadline=None)
@given(
  size=st.integers(4, 30),
  seed=st.integers(0, 2**32 - 1),
  batch_size=st.sampled_from([4, 8, 12, 32]),
  repeats=st.sampled_from([1, 2, 4]),
  start=st.integers(0, 9),
  hosts=st.sampled_from([1, 2, 4]),
  later_hosts=st.sampled_from([1, 2, 4]),
  threads=st.sampled_from([0, 1, 4]),
)
def test_hosts_threads_and_restarts_change_nothing(
  size, seed, batch_size, repeats, start, hosts, later_hosts, threads
):
  """Two epochs at least, stopped at any step and continued by others."""
  count = -(-2 * size * repeats // batch_size) + start
  alike = {"size": size, "seed": seed, "repeats": repeats}
  whole = stream(HostShard(batch_size), count, **alike)

  def read_by(hosts, first, steps):
    parts = [
      stream(
        HostShard(batch_size, first, host, hosts),
        steps,
        threads=threads,
        **alike,
      )
      for host in range(hosts)
    ]
    return np.concatenate(parts, axis=1)

  start = min(start, count - 1)
  before = read_by(hosts, 0, start) if start else whole[:0]
  after = read_by(later_hosts, start, count - start)
  np.testing.assert_array_equal(np.concatenate([before, after]), whole)


@pytest.mark.parametrize("batch_size", [3, 8, 20, 64])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_record_once(batch_size, hosts):
  batch_size *= hosts
  labels = []
  for host in range(hosts):
    shard = HostShard(batch_size, shard_index=host, shard_count=hosts)
    for batch in pipeline.eval_batches(numbers(20), shard):
      assert len(batch["mask"]) == batch_size // hosts
      labels += list(batch["label"][batch["mask"]])
      assert not batch["image"][~batch["mask"]].any()
  assert sorted(labels) == list(range(20))


def test_memory_is_that_of_a_batch_whatever_the_workers():
  """No more is read ahead than a batch, and a chunk for each worker."""
  read = []

  def transform(image, rng):
    read.append(1)
    return image

  batches = pipeline.train_batches(
    RecordReader(Numbers(5000), transform, (1, 1, 1)),
    HostShard(256),
    seed=0,
    options=ReadOptions(num_threads=4),
  )
  for taken in range(1, 4):
    next(batches)
    time.sleep(0.3)
    assert len(read) <= (taken + 1) * 256 + 5 * 64


@pytest.mark.parametrize("batch_size", [64, 256])
def test_a_batch_begins_where_jax_takes_it_without_a_copy(batch_size):
  """In memory of its own, as JAX shares it then."""
  batches = pipeline.train_batches(numbers(5000), HostShard(batch_size), seed=0)
  taken = list(itertools.islice(batches, 5))
  starts = {array.ctypes.data for batch in taken for array in batch.values()}
  assert len(starts) == 5 * 4
  assert all(start % 64 == 0 for start in starts)
