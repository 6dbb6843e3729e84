"""Steps that are not finite: a run ends there, or leaves them out."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import sharding
from flax_resnet.training import steps
from flax_resnet.training import metrics
from flax_resnet.training import RunError
from flax_resnet.training import train
from flax_resnet.training import setup as runs
from flax_resnet.training.state import TrainState
from tests.recipes import write_tiny
from tests.training.test_loop import assert_same_bits, final_state, train_to
import train as script


@pytest.fixture
def spoil(monkeypatch):
  """Makes the images of some steps NaN."""

  def spoil(config, *steps):
    seed = jax.random.key(config.seed)
    bad = [jax.random.fold_in(seed, step - 1) for step in steps]
    bad = np.stack([jax.random.key_data(key) for key in bad])

    @functools.wraps(make)
    def make_augment(*args, **kwargs):
      augment, prepared = make(*args, **kwargs)

      def spoiled(key, images, labels):
        now = (jax.random.key_data(key) == bad).all(-1).any()
        images, targets = augment(key, images, labels)
        return jnp.where(now, jnp.nan, images), targets

      return spoiled, prepared

    monkeypatch.setattr(runs, "make_augment", make_augment)

  make = runs.make_augment
  return spoil


@pytest.fixture
def config(config):
  config.update(num_steps=12, log_every=3, eval_every=12, checkpoint_every=4)
  config.keep_checkpoints = 9
  with config.unlocked():
    config.skip_nonfinite = 0
  return config


def state_of(params, count=0):
  return TrainState(
    step=jnp.int32(7),
    params=params,
    batch_stats={"mean": params},
    opt_state=(params,),
    sums=metrics.zeros() | {"count": jnp.int32(4)},
    faults=steps.none().replace(count=jnp.int32(count)),
  )


def settled(loss=1.0, grad=1.0, mean=2.0, count=0, limit=0):
  """Returns the state after a step from 1 to 2; its sums say 4 and 8."""
  after = state_of(jnp.full(3, 2.0)).replace(
    step=jnp.int32(8),
    batch_stats={"mean": jnp.full(3, mean)},
    sums=metrics.zeros() | {"count": jnp.int32(8)},
  )
  grads = {"w": jnp.array([1.0, grad]), "b": jnp.ones(())}
  new = metrics.zeros() | {"loss": jnp.float32(4 * loss), "count": jnp.int32(4)}
  before = state_of(jnp.full(3, 1.0), count)
  return steps.settle(before, after, grads, new, limit)


def told(state):
  """Returns step, parameter, statistics, optimizer, examples and faults."""
  return (
    int(state.step),
    float(state.params[0]),
    float(state.batch_stats["mean"][0]),
    float(state.opt_state[0][0]),
    int(state.sums["count"]),
    int(state.faults.count),
  )


def test_a_finite_step_is_taken():
  assert told(settled()) == (8, 2, 2, 2, 8, 0)
  assert told(settled(limit=3, count=3)) == (8, 2, 2, 2, 8, 3)
  assert told(settled(limit=10**12, count=3)) == (8, 2, 2, 2, 8, 3)


@pytest.mark.parametrize(
  "broken",
  [
    {"loss": math.nan},
    {"loss": math.inf},
    {"grad": math.nan},
    {"grad": -math.inf},
    {"grad": 1e30},  # Its square is not finite: the length of the gradient.
    {"mean": math.inf},
  ],
)
def test_a_step_that_is_not_finite_changes_nothing(broken):
  assert told(settled(**broken)) == (7, 1, 1, 1, 4, 1)
  # Where it may be skipped, it counts as a step.
  assert told(settled(**broken, limit=1)) == (8, 1, 1, 1, 4, 1)
  assert told(settled(**broken, limit=1, count=1)) == (7, 1, 1, 1, 4, 2)


def test_after_the_last_fault_no_step_is_taken():
  assert told(settled(count=1)) == (7, 1, 1, 1, 4, 1)
  assert told(settled(count=1, loss=math.nan)) == (7, 1, 1, 1, 4, 1)


def test_what_is_told_of_a_fault():
  state = settled(loss=0.5, grad=math.nan, count=2, limit=2)
  rate = lambda step: jnp.float32(step / 10)
  with pytest.raises(RunError) as error:
    steps.check(state.faults, 2, rate)
  assert str(error.value).startswith(
    "step 8 is not finite, after 2 that were skipped: loss 0.5, length of the "
    "gradient nan, learning rate 0.5; "
  )
  assert "\n" not in str(error.value)
  assert steps.check(state.faults, 3, rate) == 3


def spoiled_by_hand(run, bad):
  """The run's own step, but the host leaves the bad steps out."""
  state = run.initial_state()
  for batch in sharding.prefetch(run.train_batches(0), run.mesh):
    if (step := int(state.step)) == run.num_steps:
      return jax.device_get(state)
    if step + 1 in bad:
      state = state.replace(step=state.step + 1)
    else:
      state = run.train_step(state, batch)
  raise AssertionError


TOGETHER = {"steps_per_call": 5, "accumulate": 2, "ema_decay": 0.5}


@pytest.mark.parametrize(
  ("devices", "options"),
  [
    (1, {}),
    (4, TOGETHER | {"ema_every": 3}),
    (1, {"freeze_trunk": True, "init_from": "read by nobody here"}),
    pytest.param(1, {"steps_per_call": 5}, marks=pytest.mark.slow),
    pytest.param(1, {"accumulate": 2}, marks=pytest.mark.slow),
    pytest.param(1, {"ema_decay": 0.5}, marks=pytest.mark.slow),
    pytest.param(8, {}, marks=pytest.mark.slow),
  ],
)
def test_a_skipped_step_is_a_step_left_out(config, spoil, devices, options):
  """Bit for bit, whatever a step is made of."""
  bad = (1, 6, 7, 12)
  config.model.norm_group_size = 8
  with config.unlocked():
    config.update(options, skip_nonfinite=len(bad))
  mesh = sharding.make_mesh(jax.devices()[:devices])
  spoil(config, *bad)
  run = runs.prepare(config.to_dict(), mesh)
  state, calls = run.initial_state(), run.train_calls(0)
  while state.step < run.num_steps:
    state = run.train_step(state, next(calls)[0])
  found = jax.device_get(state)
  assert (found.step, found.faults.count, found.faults.step) == (12, 4, 12)
  assert np.isnan(found.faults.loss)

  config.steps_per_call = 1
  wanted = spoiled_by_hand(runs.prepare(config.to_dict(), mesh), bad)
  assert_same_bits(found.replace(faults=None), wanted.replace(faults=None))
  jax.tree.map(lambda x: np.testing.assert_(np.isfinite(x).all()), wanted)


def saved(workdir):
  steps = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(step) for step in steps)


def rows(workdir):
  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  return [
    json.loads(line, parse_constant=refuse)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def test_a_run_ends_with_the_step_that_is_not_finite(
  config, tmp_path, mesh, spoil
):
  spoil(config, 8)
  for _ in range(2):  # Started again, it comes to the same step.
    with pytest.raises(RunError, match="^step 8 is not finite: loss nan, leng"):
      train(config, tmp_path, mesh)
    assert saved(tmp_path) == [4]
    assert [row["step"] for row in rows(tmp_path)] == [3, 6]
    assert not (tmp_path / "summary.json").exists()
  state = final_state(config, tmp_path, mesh)
  jax.tree.map(lambda x: np.testing.assert_(np.isfinite(x).all()), state)


def test_a_run_leaves_out_as_many_as_it_may(
  config, tmp_path, mesh, spoil, monkeypatch
):
  """Also when it is stopped between two of them: it knows how many."""
  bad = (4, 5, 6, 8)
  spoil(config, *bad)
  config.skip_nonfinite = 4
  train(config, tmp_path / "whole", mesh)
  train_to(config, tmp_path / "parts", mesh, 7, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  assert_same_bits(
    final_state(config, tmp_path / "whole", mesh),
    final_state(config, tmp_path / "parts", mesh),
  )
  for name in ("whole", "parts"):
    found = rows(tmp_path / name)
    assert [row["train/skipped_steps"] for row in found] == [0, 3, 4, 4]
    assert ["train/loss" in row for row in found] == [True, False, True, True]
    # The optimizer's own count, which a skipped step does not move.
    rate = runs.prepare(config.to_dict(), mesh).learning_rate
    assert found[2]["learning_rate"] == pytest.approx(float(rate(9 - 4 - 1)))


@pytest.mark.slow
def test_a_run_leaves_out_no_more_than_it_may(
  config, tmp_path, mesh, spoil, monkeypatch
):
  spoil(config, 4, 5, 6, 8)
  config.skip_nonfinite = 3
  train_to(config, tmp_path, mesh, 7, monkeypatch)
  with pytest.raises(RunError, match="^step 8 .* after 3 that were skipped: "):
    train(config, tmp_path, mesh)
  assert saved(tmp_path) == [4, 7]


def test_gradients_are_looked_at_where_the_loss_is_finite(
  config, tmp_path, mesh, monkeypatch
):
  make = runs.make_loss

  @functools.wraps(make)
  def make_loss(**section):
    loss = make(**section)
    # Zero, with a slope that is not finite.
    root = lambda logits: jnp.sqrt(jnp.abs(0 * logits).sum(-1))
    return lambda logits, target: loss(logits, target) + root(logits)

  monkeypatch.setattr(runs, "make_loss", make_loss)
  with pytest.raises(RunError, match=r"^step 1 is not finite: loss 2\.\d+, le"):
    train(config, tmp_path, mesh)
  assert saved(tmp_path) == []
  assert rows(tmp_path) == []


def test_the_command_ends_with_a_sentence_and_code_1(
  config, tmp_path, call_main, data_dir
):
  recipe = write_tiny(tmp_path, data_dir)
  code, _, err = call_main(
    script.main,
    *(f"--config={recipe}", f"--workdir={tmp_path / 'run'}"),
    *("--config.model.norm=none", "--config.optim.learning_rate=1e12"),
  )
  assert code == 1
  assert err.startswith("error: step ")
  assert "config.skip_nonfinite=10" in err
  assert err.count("\n") == 1
  assert saved(tmp_path / "run") == []
