"""Order is a function of (seed, step)."""

import numpy as np
import pytest

from flax_resnet.data import pipeline
from flax_resnet.data.order import Share
from flax_resnet.data.reading import RecordReader


class Numbers:
  """Records whose image is their index."""

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


def stream(steps, size=20, seed=3, copies=1, threads=4, processes=0, **share):
  batches = pipeline.train_batches(
    RecordReader(Numbers(size), jitter, (5,)),
    Share(**({"batch_size": 8} | share)),
    seed=seed,
    copies=copies,
    workers=pipeline.Workers(threads, processes),
  )
  return [next(batches) for _ in range(steps)]


def images(batches):
  return np.concatenate([batch["image"] for batch in batches])


def test_every_record_comes_once_an_epoch_and_in_another_order():
  order = images(stream(10))[:, 0].reshape(4, 20)
  for epoch in order:
    assert sorted(epoch) == list(range(20))
  assert len({tuple(epoch) for epoch in order}) == 4
  assert list(order[0]) != sorted(order[0])


def test_the_seed_changes_the_order_and_the_transform():
  one, same, other = stream(5), stream(5), stream(5, seed=4)
  np.testing.assert_array_equal(images(one), images(same))
  assert (images(one)[:, 0] != images(other)[:, 0]).any()
  assert (images(one)[:, 1:] != images(other)[:, 1:]).any()


def test_no_two_places_of_a_run_share_their_random_numbers():
  drawn = images(stream(10))[:, 1:]
  assert len({tuple(row) for row in drawn}) == len(drawn)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("first", [0, 1, 2, 7])
def test_the_stream_can_be_taken_up_at_any_step(first, threads):
  whole = stream(10)
  part = stream(10 - first, first_step=first, threads=threads)
  np.testing.assert_array_equal(images(whole[first:]), images(part))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_stream_of_one(hosts):
  whole = stream(6, first_step=2)
  parts = [
    stream(6, first_step=2, shard_index=i, shard_count=hosts)
    for i in range(hosts)
  ]
  for step in range(6):
    together = np.concatenate([part[step]["image"] for part in parts])
    np.testing.assert_array_equal(together, whole[step]["image"])


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_indices_of_a_batch_are_those_of_its_records(hosts):
  for host in range(hosts):
    where = {"first_step": 2, "shard_index": host, "shard_count": hosts}
    share = Share(8, **where)
    indices = pipeline.train_indices(20, share, seed=3)
    for batch in stream(6, **where):
      np.testing.assert_array_equal(next(indices), batch["label"])


def test_a_batch_has_the_keys_and_types_that_later_steps_expect():
  (batch,) = stream(1)
  assert set(batch) == {"image", "label", "mask", "broken"}
  assert batch["label"].dtype == np.int32
  assert batch["mask"].dtype == bool
  assert batch["mask"].all()
  np.testing.assert_array_equal(batch["label"], batch["image"][:, 0])


@pytest.mark.parametrize("batch_size", [3, 8, 20, 64])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_record_once(batch_size, hosts):
  batch_size *= hosts
  seen = []
  for host in range(hosts):
    for batch in pipeline.eval_batches(
      RecordReader(Numbers(20), lambda image, rng: image, (1, 1, 1)),
      Share(batch_size, shard_index=host, shard_count=hosts),
    ):
      assert len(batch["mask"]) == batch_size // hosts
      seen += list(batch["label"][batch["mask"]])
      assert not batch["image"][~batch["mask"]].any()
  assert sorted(seen) == list(range(20))
