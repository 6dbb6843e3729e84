"""The stream of (record, random numbers) is a function of (seed, place)."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flax_resnet.data import pipeline
from flax_resnet.data.order import generator, Order, Share
from flax_resnet.data.pipeline import Workers
from flax_resnet.data.reading import RecordReader
from tests.data.test_pipeline import jitter, Numbers


def rows(batches, count):
  """Returns the images of so many batches: the record, and what was drawn."""
  taken = [batch["image"] for batch in itertools.islice(batches, count)]
  return np.stack(taken)


def stream(size, share, seed, count, copies=1, threads=0, processes=0):
  batches = pipeline.train_batches(
    RecordReader(Numbers(size), jitter, (5,)),
    share,
    seed=seed,
    copies=copies,
    workers=Workers(threads, processes),
  )
  return rows(batches, count)


runs = st.fixed_dictionaries(
  {
    "size": st.integers(4, 60),
    "seed": st.integers(0, 2**32 - 1),
    "batch_size": st.sampled_from([4, 8, 12, 20, 32]),
    "copies": st.sampled_from([1, 2, 4]),
  }
)


@settings(max_examples=60, deadline=None)
@given(
  runs,
  st.integers(0, 9),
  st.sampled_from([1, 2, 4]),
  st.sampled_from([1, 2, 4]),
  st.sampled_from([0, 1, 4]),
)
def test_hosts_workers_and_restarts_change_nothing(
  run, start, hosts, later_hosts, threads
):
  """Two epochs at least, stopped at any step and gone on with by others."""
  size, batch_size = run["size"], run["batch_size"]
  count = -(-2 * size * run["copies"] // batch_size) + start
  plain = {"seed": run["seed"], "copies": run["copies"]}
  whole = stream(size, Share(batch_size), count=count, **plain)

  def by(hosts, first, steps):
    parts = [
      stream(
        size,
        Share(batch_size, first, host, hosts),
        count=steps,
        threads=threads,
        **plain,
      )
      for host in range(hosts)
    ]
    return np.concatenate(parts, axis=1)

  start = min(start, count - 1)
  before = by(hosts, 0, start) if start else whole[:0]
  after = by(later_hosts, start, count - start)
  np.testing.assert_array_equal(np.concatenate([before, after]), whole)


@settings(max_examples=100, deadline=None)
@given(runs)
def test_every_record_comes_once_an_epoch(run):
  size, copies = run["size"], run["copies"]
  order = Order(size, run["seed"], run["batch_size"], copies)
  steps = -(-2 * size * copies // run["batch_size"])
  batches = order(np.arange(steps * run["batch_size"]))
  batches = batches.reshape(steps, copies, -1)
  # The copies of a batch are alike; the first ones are the stream of records.
  np.testing.assert_array_equal(batches, np.repeat(batches[:, :1], copies, 1))
  distinct = batches[:, 0].ravel()
  for epoch in range(2):
    seen = distinct[epoch * size : (epoch + 1) * size]
    assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_change_nothing(processes):
  plain = stream(20, Share(24), seed=3, count=3)
  other = stream(20, Share(24), seed=3, count=3, threads=1, processes=processes)
  np.testing.assert_array_equal(other, plain)


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = {
    tuple(Order(50, seed, 10)(np.arange(50) + 50 * epoch))
    for seed in range(20)
    for epoch in range(20)
  }
  assert len(orders) == 400


def test_a_record_is_at_every_place_equally_often():
  """Of 8 records, over 4,000 epochs: chi-squared of 64 cells, 49 degrees."""
  order = Order(8, 1, 8)(np.arange(8 * 4000)).reshape(4000, 8)
  counts = np.stack([(order == i).sum(0) for i in range(8)])
  chi_squared = ((counts - 500) ** 2 / 500).sum()
  assert 23 < chi_squared < 85  # The 0.1 % at either end.


def test_the_generator_of_a_place_is_a_philox_with_its_key():
  for seed, place in ((0, 0), (3, 5), (2**64 - 1, 2**63 + 7)):
    philox = np.random.Philox(key=np.array([seed, place], np.uint64))
    wanted = np.random.Generator(philox).random(9)
    np.testing.assert_array_equal(generator(seed, place).random(9), wanted)


def test_copies_must_fill_a_batch():
  with pytest.raises(ValueError, match="is 3, which does not divide .* 8"):
    Order(10, 0, 8, copies=3)


def test_memory_is_that_of_a_batch_whatever_the_workers():
  """No more is read ahead than a batch, and a chunk for each worker."""
  read = []

  def note(image, rng):
    read.append(1)
    return image

  batches = pipeline.train_batches(
    RecordReader(Numbers(5000), note, (1, 1, 1)),
    Share(256),
    seed=0,
    workers=Workers(threads=4),
  )
  import time

  for taken in range(1, 4):
    next(batches)
    time.sleep(0.3)
    assert len(read) <= (taken + 1) * 256 + 5 * 64


@pytest.mark.parametrize("batch_size", [64, 256])
def test_a_batch_lies_where_jax_takes_it_without_a_copy(batch_size):
  batches = pipeline.train_batches(
    RecordReader(Numbers(5000), lambda image, rng: image, (1, 1, 1)),
    Share(batch_size),
    seed=0,
  )
  for batch in itertools.islice(batches, 5):
    assert all(array.ctypes.data % 64 == 0 for array in batch.values())
