"""The compiled step: what it donates and what it sends between devices."""

import collections
import re

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training.setup import prepare


@pytest.fixture
def run(config):
  config.augment.update(flip=True, crop_padding=2)
  config.model.norm_group_size = 8
  return prepare(config.to_dict(), sharding.make_mesh())


def compiled(run):
  batch = next(sharding.prefetch(run.train_batches(0), run.mesh))
  return run.train_step.lower(run.initial_state(), batch).compile()


def test_the_initial_state_is_drawn_without_running_the_network(
  run, monkeypatch
):
  convolution = jax.lax.conv_general_dilated

  def traced(x, *args, **kwargs):
    assert isinstance(x, jax.core.Tracer)
    return convolution(x, *args, **kwargs)

  monkeypatch.setattr(jax.lax, "conv_general_dilated", traced)
  state = run.initial_state()
  assert state.params["stem"]["conv"]["kernel"].std() > 0
  assert "bn2" in state.params["stage1_block1"]


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_the_state_is_updated_in_place(config, mesh, steps_per_call):
  """No second copy of it, neither after one step nor within several."""
  config.steps_per_call = steps_per_call
  run = prepare(config.to_dict(), mesh)
  state = run.initial_state()
  batch, _ = next(run.train_calls(0))
  compiled = run.train_step.lower(state, batch).compile()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert compiled.memory_analysis().alias_size_in_bytes >= size
  compiled(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


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


def test_stochastic_depth_draws_from_seed_and_step(config):
  """The same blocks go on one device and on eight; others in each step."""
  config.augment.update(rotation=0.0, translation=0.0, scaling=0.0, shear=0.0)
  with config.model.unlocked():
    config.model.stochastic_depth = 0.5
    config.model.dtype = config.model.param_dtype = "float64"

  def losses(devices, seed):
    config.seed = seed
    config.optim.learning_rate = 1e-12  # So that the drops alone differ.
    mesh = sharding.make_mesh(jax.devices()[:devices])
    run = prepare(config.to_dict(), mesh)
    state = run.initial_state()
    batch = next(sharding.prefetch(run.train_batches(0), mesh))
    found = []
    for _ in range(3):
      state = run.train_step(state, batch)
      found.append(float(state.sums["loss"]))
      state = state.replace(sums=run.zero_sums())
    return found

  with jax.enable_x64(True):
    one = losses(1, seed=0)
    assert one == pytest.approx(losses(8, seed=0), rel=1e-6)
    assert one == losses(1, seed=0)
  assert len(set(one)) == 3
