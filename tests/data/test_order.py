"""The order of records is a function of the seed and the position."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np

from flax_resnet.data.order import generator, Order


@settings(max_examples=100, deadline=None)
@given(
  size=st.integers(4, 60),
  seed=st.integers(0, 2**32 - 1),
  batch_size=st.sampled_from([4, 8, 12, 20, 32]),
  repeats=st.sampled_from([1, 2, 4]),
)
def test_every_record_comes_once_an_epoch(size, seed, batch_size, repeats):
  order = Order(size, seed, batch_size, repeats)
  steps = -(-2 * size * repeats // batch_size)
  batches = order(np.arange(steps * batch_size)).reshape(steps, repeats, -1)
  # The repeats in a batch are alike; the first ones are the stream of records.
  np.testing.assert_array_equal(batches, np.repeat(batches[:, :1], repeats, 1))
  distinct = batches[:, 0].ravel()
  for epoch in range(2):
    records = distinct[epoch * size : (epoch + 1) * size]
    assert sorted(records) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = {
    tuple(Order(50, seed, 10)(np.arange(50) + 50 * epoch))
    for seed in range(20)
    for epoch in range(20)
  }
  assert len(orders) == 400


def test_a_record_is_at_every_position_equally_often():
  """Of 8 records, over 4,000 epochs: chi-squared of 64 cells, 49 degrees."""
  order = Order(8, 1, 8)(np.arange(8 * 4000)).reshape(4000, 8)
  counts = np.stack([(order == i).sum(0) for i in range(8)])
  chi_squared = ((counts - 500) ** 2 / 500).sum()
  assert 23 < chi_squared < 85  # The 0.1 % at either end.


def test_the_generator_of_a_position_is_a_philox_with_its_key():
  for seed, position in ((0, 0), (3, 5), (2**64 - 1, 2**63 + 7)):
    philox = np.random.Philox(key=np.array([seed, position], np.uint64))
    expected = np.random.Generator(philox).random(9)
    np.testing.assert_array_equal(generator(seed, position).random(9), expected)


LABELS = np.repeat([2, 0, 5], [20, 3, 7])  # Of unequal size; some are missing.


def test_classes_that_are_balanced_come_equally_often():
  """To one an epoch, and to one over the whole run; records in turn."""
  order = Order(30, 1, 10, labels=LABELS)
  epochs = order(np.arange(300)).reshape(10, 30)
  by_epoch = np.stack([(LABELS[epochs] == c).sum(1) for c in (2, 0, 5)])
  np.testing.assert_array_equal(by_epoch, 10)
  counts = np.bincount(epochs.ravel(), minlength=30)
  for label, size in ((2, 20), (0, 3), (5, 7)):
    of_class = counts[label == LABELS]
    assert len(of_class) == size
    assert of_class.max() - of_class.min() <= 1
  assert len({tuple(epoch) for epoch in epochs}) == 10


def test_balanced_places_are_a_function_of_seed_and_position():
  whole = Order(30, 1, 10, labels=LABELS)(np.arange(100))
  again = Order(30, 1, 10, labels=LABELS)
  np.testing.assert_array_equal(
    np.concatenate([again(np.arange(70, 100)), again(np.arange(70))]),
    np.r_[whole[70:], whole[:70]],
  )
  other = Order(30, 2, 10, labels=LABELS)(np.arange(100))
  assert (other != whole).any()


def test_an_uneven_number_of_records_is_balanced_over_epochs():
  labels = np.repeat([0, 1], [7, 4])
  drawn = Order(11, 0, 11, labels=labels)(np.arange(22))
  counts = np.bincount(labels[drawn])
  np.testing.assert_array_equal(counts, [11, 11])
