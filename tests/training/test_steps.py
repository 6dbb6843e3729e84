"""The compiled step: what it donates and what it sends between devices."""

import collections
import re

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training.run import prepare


@pytest.fixture
def run(config):
  config.augment.update(flip=True, crop_padding=2)
  config.model.norm_group_size = 8
  return prepare(config.to_dict(), sharding.make_mesh())


def compiled(run):
  batch = next(sharding.prefetch(run.train_batches(0), run.mesh))
  return run.train_step.lower(run.initial_state(), batch).compile()


def test_the_state_is_donated(run):
  state = run.initial_state()
  batch = next(sharding.prefetch(run.train_batches(0), run.mesh))
  run.train_step(state, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_groups_within_a_device_need_only_the_gradients_reduced(run):
  """64 examples on 8 devices: a group of 8 lies on one of them."""
  found = collections.Counter(
    re.findall(
      r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
      r"(?:-start)?\(",
      compiled(run).as_text(),
    )
  )
  assert set(found) == {"all-reduce"}
  # The whole batch as one group would add two and more for each BatchNorm.
  assert found["all-reduce"] <= 3
