"""A step in parts is the step of the whole batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import create_model, sharding
from flax_resnet.training.accumulation import (
  accumulate_gradients,
  accumulation_group_size,
  split_batch,
)
from flax_resnet.training.setup import set_up
from tests import recipes
from tests.runs import after_steps, first_state


def run_of(data_dir, devices=1, *, dtype="float64", model, **changes):
  """Returns a run whose images are flipped at random."""
  config = recipes.one_block(data_dir).to_dict()
  config["model"] |= {"dtype": dtype, "param_dtype": dtype, **model}
  config["augment"] |= {"flip": True, "crop_padding": 2}
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return set_up(config | changes, mesh)


def after_two_steps(*args, **changes):
  with jax.enable_x64(True):
    return jax.device_get(after_steps(run_of(*args, **changes), 2))


def assert_close(found, wanted, rtol=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol, atol=1e-13),
    (found.variables, found.opt_state),
    (wanted.variables, wanted.opt_state),
  )
  for key, value in wanted.sums.items():  # In float32.
    np.testing.assert_allclose(found.sums[key], value, rtol=1e-6)


@pytest.mark.parametrize(
  ("devices", "model", "options"),
  [
    (4, {"norm_group_size": 16}, {"accumulate": 4}),
    pytest.param(
      1,
      {"norm_group_size": 16},
      {"accumulate": 2, "steps_per_call": 2},
      marks=pytest.mark.deep,
    ),
    # Without BatchNorm there are no groups.
    pytest.param(
      4, {"norm": "none"}, {"accumulate": 16}, marks=pytest.mark.deep
    ),
  ],
)
def test_parts_give_the_update_of_the_whole(data_dir, devices, model, options):
  """Parameters, running statistics, momentum and metrics."""
  whole = after_two_steps(data_dir, model=model)
  found = after_two_steps(data_dir, devices, model=model, **options)
  assert found.params["head"]["kernel"].dtype == np.float64
  assert found.sums["count"] == 128
  assert_close(found, whole)


def test_parts_of_other_classes_have_the_mean_of_the_whole(data_dir):
  """The loss is divided by the weight of the whole batch, not of a part."""
  model = {"norm_group_size": 8}
  loss = {"loss": {"class_weights": tuple(np.arange(1.0, 11.0))}}
  whole = after_two_steps(data_dir, model=model, **loss)
  found = after_two_steps(data_dir, model=model, accumulate=8, **loss)
  assert_close(found, whole)
  plain = after_two_steps(data_dir, model=model)
  assert (
    np.abs(whole.params["head"]["bias"] - plain.params["head"]["bias"]).max()
    > 1e-3
  )


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_means_and_sums_are_those_of_the_whole(devices, group_size):
  def gradients(key, batch):
    grads = jax.grad(lambda w: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))
    w = jnp.arange(3.0)
    return grads(w), batch["x"].mean(0), batch["y"].sum()

  rng = np.random.default_rng(0)
  batch = {
    "x": np.float32(rng.normal(size=(64, 3))),
    "y": np.float32(rng.normal(size=64)),
  }
  mesh = sharding.make_mesh(jax.devices()[:devices])
  batch = sharding.shard_batch(batch, mesh)
  in_parts = accumulate_gradients(gradients, 4, group_size, mesh)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    jax.jit(in_parts)(jax.random.key(0), batch),
    gradients(None, batch),
  )


def test_each_part_draws_its_own_drops():
  drawn = []

  def gradients(key, batch):
    bits = jax.random.key_data(key)
    jax.debug.callback(lambda *a: drawn.append(tuple(map(int, a))), *bits)
    return batch["x"].sum(), {}, {}

  mesh = sharding.make_mesh(jax.devices()[:1])
  in_parts = accumulate_gradients(gradients, 4, 2, mesh)
  jax.jit(in_parts)(jax.random.key(0), {"x": np.arange(16.0)})
  jax.effects_barrier()
  assert len(set(drawn)) == len(drawn) == 4


def test_a_part_is_every_so_many_groups():
  parts = split_batch({"x": jnp.arange(16)}, 2, 2)["x"]
  assert parts.tolist() == [
    [0, 1, 4, 5, 8, 9, 12, 13],
    [2, 3, 6, 7, 10, 11, 14, 15],
  ]


def test_a_frozen_trunk_keeps_its_statistics(data_dir):
  """Bit for bit: a mean of three equal numbers is not always that number."""
  with jax.enable_x64(True):
    options = {"batch_size": 48, "freeze_trunk": True, "init_from": "weights"}
    run = run_of(data_dir, model={}, accumulate=3, **options)
    state = first_state(run)
    rng = np.random.default_rng(0)
    odd = jax.tree.map(
      lambda x: rng.uniform(0.5, 1.5, x.shape), state.batch_stats
    )
    state = state.replace(batch_stats=sharding.replicate(odd, run.mesh))
    state = run.train_step(state, next(run.train_inputs(0))[0])
    found = jax.device_get(state.batch_stats)
  jax.tree.map(np.testing.assert_array_equal, found, odd)


def compiled_step(data_dir, devices, parts):
  """Returns the compiled step of batches of 64 in groups of 4."""
  model = {"norm_group_size": 4}
  run = run_of(
    data_dir, devices, dtype="float32", model=model, accumulate=parts
  )
  batch, _ = next(run.train_inputs(0))
  return run.train_step.lower(first_state(run), batch).compile()


def test_nothing_but_gradients_goes_between_devices(data_dir):
  """8 devices have two groups each, one for each of two parts."""
  sent = re.findall(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\(",
    compiled_step(data_dir, 8, 2).as_text(),
  )
  assert set(sent) == {"all-reduce"}


def test_parts_take_less_memory(data_dir):
  whole, parts = (
    compiled_step(data_dir, 1, parts).memory_analysis().temp_size_in_bytes
    for parts in (1, 16)
  )
  assert parts < whole / 2


@pytest.mark.parametrize(
  ("parts", "model", "frozen", "group_size"),
  [
    (1, {}, False, 64),
    (4, {"norm_group_size": 8}, False, 8),
    (4, {"norm": "none"}, False, 1),
    (4, {}, True, 1),
  ],
)
def test_a_part_holds_whole_groups(parts, model, frozen, group_size):
  model = create_model("cifar_resnet8", num_classes=10, **model)
  mesh = sharding.make_mesh(jax.devices()[:4])
  found = accumulation_group_size(model, 64, parts, mesh, frozen=frozen)
  assert found == group_size
