"""What a run carries from step to step, and its moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training import state as states
from tests import recipes, runs

DECAY = 0.7


@pytest.fixture
def config(data_dir):
  return recipes.tiniest(data_dir)


def test_the_first_state_is_drawn_without_running_the_network(
  config, monkeypatch
):
  convolution = jax.lax.conv_general_dilated

  def traced(x, *args, **kwargs):
    assert isinstance(x, jax.core.Tracer)
    return convolution(x, *args, **kwargs)

  monkeypatch.setattr(jax.lax, "conv_general_dilated", traced)
  state = runs.make_run(config).drawn_state()
  assert state.params["stem"]["conv"]["kernel"].std() > 0
  assert "bn2" in state.params["stage1_block1"]


def test_the_seed_draws_the_parameters(config):
  first, again, other = (
    runs.make_run(config, {"seed": seed}).drawn_state().params
    for seed in (0, 0, 1)
  )
  runs.assert_same_bits(first, again)
  assert np.any(first["head"]["kernel"] != other["head"]["kernel"])


def followed(average, variables):
  """Returns the average after an update, by NumPy in float64."""
  return jax.tree.map(
    lambda old, new: DECAY * old + (1 - DECAY) * np.asarray(new, np.float64),
    average,
    variables,
  )


def assert_close(found, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    found,
    wanted,
  )


def test_five_steps_move_the_average_as_numpy_does(config):
  """Parameters and running statistics, after every second step."""
  run = runs.make_run(
    config, {"ema_decay": DECAY, "ema_every": 2, "num_steps": 5}
  )
  state = runs.first_state(run)
  runs.assert_same_bits(state.average, state.variables)
  wanted = jax.tree.map(lambda x: np.asarray(x, np.float64), state.variables)
  for step, (batch, _) in enumerate(run.train_inputs(0), start=1):
    state = run.train_step(state, batch)
    if step % 2 == 0:
      wanted = followed(wanted, state.variables)
    assert_close(state.average, wanted)
    assert state.eval_variables is state.average
    if step == 5:
      break


def test_an_average_of_bfloat16_moves():
  average = states.start_average({"kernel": jnp.ones(3, jnp.bfloat16)})
  moved = states.update_average(
    average,
    {"kernel": jnp.zeros(3, jnp.bfloat16)},
    jnp.int32(1),
    decay=0.999,
    every=1,
  )
  np.testing.assert_allclose(moved["kernel"], 0.999, rtol=1e-6)


def test_an_average_starts_at_other_variables_as_a_copy(config):
  """Of its own: a step gives the memory of both away."""
  run = runs.make_run(config, {"ema_decay": DECAY})
  drawn = run.drawn_state()
  variables = jax.tree.map(lambda x: x + 0.5, drawn.variables)
  state = drawn.with_variables(variables)
  runs.assert_same_bits(state.average, variables)
  arrays = [state.average, state.variables]
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(arrays)]
  assert len(set(pointers)) == len(pointers)


def test_without_an_average_the_variables_are_evaluated(config):
  state = runs.make_run(config).drawn_state()
  assert state.average == {}
  runs.assert_same_bits(state.eval_variables, state.variables)
  assert state.with_variables(state.variables).average == {}


def test_an_average_warms_up_as_in_timm():
  """The first update takes the variables; decay is reached in the end."""
  found = [states.warm_decay(jnp.int32(n), 0.9) for n in (1, 2, 9, 32, 33, 100)]
  wanted = [0.0, 1 - 2 ** (-2 / 3), 1 - 9 ** (-2 / 3), 0.9, 0.9, 0.9]
  wanted[3] = min(0.9, 1 - 32 ** (-2 / 3))
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.deep
def test_the_decay_of_every_update_is_that_of_timm():
  torch = pytest.importorskip("torch")
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  utils = pytest.importorskip("timm.utils")
  ema = utils.ModelEmaV3(torch.nn.Linear(1, 1), decay=0.99, use_warmup=True)
  steps = [1, 2, 3, 10, 100, 1000, 2000]
  found = [states.warm_decay(jnp.int32(step), 0.99) for step in steps]
  wanted = [ema.get_decay(step) for step in steps]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_warm_average_follows_its_own_updates(config):
  """With one of every two steps, the second of them is update 1."""
  run = runs.make_run(
    config,
    {"ema_decay": 0.9, "ema_every": 2, "ema_warmup": True, "num_steps": 4},
  )
  two = runs.after_steps(run, 2)
  assert_close(two.average, two.variables)
  before = jax.device_get(two.average)
  four = runs.after_steps(run, 4, two)
  kept = 1 - 2 ** (-2 / 3)
  wanted = jax.tree.map(
    lambda a, x: kept * a + (1 - kept) * x, before, four.variables
  )
  assert_close(four.average, wanted)
