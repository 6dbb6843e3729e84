"""A step in parts is the step of the whole batch."""

import re

import jax
import numpy as np
import pytest

from flax_resnet import sharding
from flax_resnet.training import accumulation, InputError
from flax_resnet.training.announcement import describe
from flax_resnet.training.run import prepare


@pytest.fixture
def exact(config):
  """In float64, with much that is drawn for a batch."""
  with config.unlocked(), config.model.unlocked(), config.augment.unlocked():
    config.model.update(dtype="float64", param_dtype="float64")
    config.augment.update(mixup=0.5, random_erasing=0.5, crop_padding=2)
    # They take long to compile.
    config.augment.update(rotation=0.0, translation=0.0, scaling=0.0, shear=0.0)
  return config


def prepared(config, devices=1, **changes):
  model = changes.pop("model", {})
  with config.unlocked(), config.model.unlocked():
    config.update(changes)
    config.model.update(model)
  return prepare(config.to_dict(), sharding.make_mesh(jax.devices()[:devices]))


def after_two_steps(config, devices=1, **changes):
  run = prepared(config, devices, **changes)
  state = run.initial_state()
  calls = run.train_calls(0)
  while state.step < 2:
    state = run.train_step(state, next(calls)[0])
  return jax.device_get(state)


def assert_close(found, wanted, rtol=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol, atol=1e-13),
    (found.variables, found.opt_state),
    (wanted.variables, wanted.opt_state),
  )
  for key, value in wanted.sums.items():  # In float32.
    np.testing.assert_allclose(found.sums[key], value, rtol=1e-6)


@pytest.mark.parametrize(
  ("accumulate", "group", "devices"),
  [
    (2, 16, 1),
    (4, 16, 4),
    pytest.param(4, 4, 4, marks=pytest.mark.slow),
  ],
)
def test_parts_give_the_update_of_the_whole(exact, accumulate, group, devices):
  """Parameters, running statistics, momentum and metrics."""
  with jax.enable_x64(True):
    model = {"norm_group_size": group}
    wanted = after_two_steps(exact, model=model)
    found = after_two_steps(exact, devices, accumulate=accumulate, model=model)
    assert found.params["head"]["kernel"].dtype == np.float64
    assert found.sums["count"] == 128
    assert_close(found, wanted)


@pytest.mark.slow
def test_groups_are_what_parts_must_not_divide(exact):
  """The same parts with other groups are another update."""
  with jax.enable_x64(True):
    whole = after_two_steps(exact, model={"norm_group_size": 16})
    other = after_two_steps(exact, accumulate=4, model={"norm_group_size": 8})
  a, b = (state.batch_stats["stem"]["bn"]["var"] for state in (whole, other))
  assert np.abs(a - b).max() > 1e-4


@pytest.mark.slow
def test_several_steps_by_one_call(exact):
  with jax.enable_x64(True):
    model = {"norm_group_size": 8}
    wanted = after_two_steps(exact, model=model)
    found = after_two_steps(exact, steps_per_call=2, accumulate=2, model=model)
    assert_close(found, wanted)


def test_without_batch_norm_there_are_no_groups(exact):
  with jax.enable_x64(True):
    model = {"norm": "none", "norm_group_size": None}
    wanted = after_two_steps(exact, model=model)
    found = after_two_steps(exact, 4, accumulate=16, model=model)
    assert_close(found, wanted)


def test_a_frozen_trunk_keeps_its_statistics(exact):
  """Bit for bit: a mean of three equal numbers is not always that number."""
  with jax.enable_x64(True):
    given = {"batch_size": 48, "freeze_trunk": True, "init_from": "x"}
    run = prepared(exact, **given)
    before = run.initial_state()
    rng = np.random.default_rng(0)
    odd = jax.tree.map(
      lambda x: rng.uniform(0.5, 1.5, x.shape), before.batch_stats
    )
    states = []
    for accumulate in (1, 3):
      run = prepared(exact, accumulate=accumulate, **given)
      state = run.initial_state()
      state = state.replace(
        batch_stats=jax.device_put(odd, sharding.replicated(run.mesh))
      )
      state = run.train_step(state, next(run.train_calls(0))[0])
      states.append(jax.device_get(state))
    assert_close(*states)
    jax.tree.map(np.testing.assert_array_equal, states[1].batch_stats, odd)


@pytest.mark.slow
def test_what_is_dropped_does_not_depend_on_the_devices(exact):
  with jax.enable_x64(True):
    given = {
      "accumulate": 4,
      "model": {"norm_group_size": 8, "stochastic_depth": 0.5},
    }
    assert_close(
      after_two_steps(exact, 4, **given), after_two_steps(exact, **given)
    )


def test_each_part_draws_its_own_drops(exact):
  """And has them in every step alike, if only the step is the same."""
  drawn = []

  def gradients(key, batch):
    bits = jax.random.key_data(key)
    jax.debug.callback(lambda *a: drawn.append(tuple(map(int, a))), *bits)
    return batch["x"].sum(), {}, {}

  mesh = sharding.make_mesh(jax.devices()[:1])
  of_parts = accumulation.in_parts(gradients, 4, 2, mesh)
  jax.jit(of_parts)(jax.random.key(0), {"x": np.arange(16.0)})
  jax.effects_barrier()
  assert len(set(drawn)) == len(drawn) == 4


def test_a_part_is_every_so_many_groups():
  parts = accumulation.split({"x": np.arange(16)}, 2, 2)["x"]
  assert parts.tolist() == [
    [0, 1, 4, 5, 8, 9, 12, 13],
    [2, 3, 6, 7, 10, 11, 14, 15],
  ]


def test_nothing_but_gradients_goes_between_devices(config):
  """64 examples on 8 devices: each has two groups of 4, one for each part."""
  config.augment.update(flip=True, crop_padding=2)
  run = prepared(config, 8, accumulate=2, model={"norm_group_size": 4})
  batch, _ = next(run.train_calls(0))
  text = run.train_step.lower(run.initial_state(), batch).compile().as_text()
  sent = re.findall(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\(",
    text,
  )
  assert set(sent) == {"all-reduce"}


def test_parts_take_less_memory(config, mesh):
  def scratch(accumulate):
    model = {"norm_group_size": 4}
    run = prepared(config, accumulate=accumulate, model=model)
    batch, _ = next(run.train_calls(0))
    step = run.train_step.lower(run.initial_state(), batch).compile()
    return step.memory_analysis().temp_size_in_bytes

  assert scratch(16) < scratch(1) / 2


def test_the_log_says_so(config):
  run = prepared(config, accumulate=4, model={"norm_group_size": 8})
  said = describe(run, run.initial_state())
  assert "adds up the gradients of 4 parts of 16 examples" in said


@pytest.mark.parametrize(
  ("accumulate", "group", "message"),
  [
    (0, 8, "config: accumulate is 0: use 1 or more"),
    (3, 8, "accumulate is 3, which does not divide batch_size 64"),
    (32, 1, "parts of 2 examples that 4 devices cannot share evenly"),
    (
      4,
      None,
      "accumulate is 4 and model.norm_group_size None, with which BatchNorm "
      "needs all 64 examples at once: set model.norm_group_size to 16 or a "
      "divisor of it",
    ),
    (
      4,
      32,
      "parts of 16 examples that are no groups of 32: set "
      "model.norm_group_size to a divisor of 16",
    ),
  ],
)
def test_parts_that_are_not_the_whole_are_refused(
  config, accumulate, group, message
):
  with pytest.raises(InputError, match=message):
    prepared(config, 4, accumulate=accumulate, model={"norm_group_size": group})
