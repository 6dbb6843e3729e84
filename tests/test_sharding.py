import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import data, sharding


def test_a_batch_is_split_in_order_over_the_devices():
  batch = {"image": np.arange(32, dtype=np.uint8).reshape(16, 2)}
  image = sharding.shard_batch(batch, sharding.make_mesh())["image"]
  assert len(image.addressable_shards) == 8
  for i, shard in enumerate(image.addressable_shards):
    np.testing.assert_array_equal(shard.data, batch["image"][2 * i : 2 * i + 2])


def test_a_tree_is_whole_on_every_device():
  tree = {"a": np.arange(3), "b": [jnp.ones((2, 2)), 4.0]}
  whole = sharding.replicate(tree, sharding.make_mesh())
  jax.tree.map(np.testing.assert_array_equal, whole, tree)
  for leaf in jax.tree.leaves(whole):
    assert [s.data.shape for s in leaf.addressable_shards] == [leaf.shape] * 8


@pytest.mark.parametrize("batch_size", [7, 12])
def test_a_batch_that_cannot_be_split_is_refused(batch_size):
  with pytest.raises(ValueError, match=f"batch_size is {batch_size}.*of 8"):
    sharding.check_batch_size(batch_size, sharding.make_mesh())


def test_round_up():
  mesh = sharding.make_mesh(jax.devices()[:4])
  assert [sharding.round_up(n, mesh) for n in (1, 4, 7, 512)] == [4, 4, 8, 512]


def test_prefetch_keeps_order_and_ends():
  mesh = sharding.make_mesh()
  batches = [{"x": np.full(8, i)} for i in range(5)]
  seen = [int(b["x"][0]) for b in sharding.prefetch(iter(batches), mesh)]
  assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_threads", [0, 4])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_on_the_device_does_not_change(num_threads, devices):
  """JAX takes aligned arrays of the host as they are, without a copy."""
  section = {
    "name": "synthetic",
    "train_split": "train",
    "eval_split": "test",
    "image_size": 16,
    "num_threads": num_threads,
  }
  train = data.load(section, num_classes=4).train
  batches = train.train_batches(seed=0, batch_size=64)
  mesh, seen = sharding.make_mesh(jax.devices()[:devices]), []
  for batch in sharding.prefetch(itertools.islice(batches, 40), mesh):
    seen.append((batch, jax.tree.map(np.array, batch)))
  for batch, first in seen:
    jax.tree.map(np.testing.assert_array_equal, batch, first)
