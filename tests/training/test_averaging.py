"""The moving average of a run, and who takes it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet import __main__ as verbs
from flax_resnet import sharding
from flax_resnet.training import state
from flax_resnet.training import InputError
from flax_resnet.training import loop
from flax_resnet.training import train
from flax_resnet.training.log import read
from flax_resnet.training.setup import prepare
from flax_resnet.training.init_from import warm_start
from flax_resnet.weights import files
from tests.training.test_loop import (
  assert_same_bits,
  final_state,
  train_to,
)

DECAY = 0.7


@pytest.fixture
def averaged(config):
  with config.unlocked():
    config.update(ema_decay=DECAY, num_steps=5)
  return config


def in_float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("every", [1, 2])
def test_five_steps_are_those_of_numpy(averaged, mesh, every):
  with averaged.unlocked():
    averaged.ema_every = every
  run = prepare(averaged.to_dict(), mesh)
  state = run.initial_state()
  wanted = in_float64(state.variables)
  assert_same_bits(state.average, state.variables)
  calls = run.train_calls(0)
  for step in range(1, 6):
    state = run.train_step(state, next(calls)[0])
    if step % every == 0:
      wanted = jax.tree.map(
        lambda old, new: DECAY * old + (1 - DECAY) * new,
        wanted,
        in_float64(state.variables),
      )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      state.average,
      wanted,
    )
  assert state.average.keys() == {"params", "batch_stats"}


def test_a_stopped_run_has_the_same_average(
  averaged, tmp_path, mesh, monkeypatch
):
  with averaged.unlocked():
    averaged.ema_every = 2
  train(averaged, tmp_path / "whole", mesh)
  for stop in (1, 3):
    train_to(averaged, tmp_path / "parts", mesh, stop, monkeypatch)
  train(averaged, tmp_path / "parts", mesh)
  whole, parts = (
    final_state(averaged, tmp_path / name, mesh) for name in ("whole", "parts")
  )
  assert_same_bits(whole, parts)
  averaged.steps_per_call = 2
  train(averaged, tmp_path / "calls", mesh)
  assert_same_bits(
    whole.average, final_state(averaged, tmp_path / "calls", mesh).average
  )


def test_all_that_evaluates_takes_the_average(
  averaged, tmp_path, mesh, capsys, call_main
):
  averaged.update(eval_every=5, checkpoint_every=5)
  train(averaged, tmp_path, mesh)
  assert "it keeps 0.7 of itself every step" in capsys.readouterr().out
  row = read(tmp_path / "metrics.jsonl")[-1]
  state = final_state(averaged, tmp_path, mesh)
  _, variables = fr.from_pretrained(tmp_path)
  assert_same_bits(variables, state.average)
  assert not np.array_equal(
    variables["params"]["head"]["kernel"], state.params["head"]["kernel"]
  )
  code, out, _ = call_main(
    verbs.main, "evaluate", "--workdir", tmp_path, "--json"
  )
  assert code == 0
  assert json.loads(out)["val/loss"] == pytest.approx(row["val/loss"], rel=1e-5)

  with averaged.unlocked():
    del averaged["ema_decay"]
  plain = prepare(averaged.to_dict(), mesh)

  def loss(variables):
    at = plain.initial_state().with_variables(
      jax.device_put(variables, sharding.replicated(mesh))
    )
    found = loop.evaluate(plain.eval_step, at, plain.eval_batches(), mesh)
    return found["val/loss"]

  assert row["val/loss"] == pytest.approx(loss(state.average), rel=1e-5)
  assert abs(row["val/loss"] - loss(state.variables)) > 1e-3


def test_a_run_without_it_keeps_its_checkpoint_layout(config, tmp_path, mesh):
  train(config, tmp_path, mesh)
  described = tmp_path / "checkpoints" / "4" / "state" / "_METADATA"
  names = json.loads(described.read_text())["tree_metadata"]
  assert {name.split("'")[1] for name in names} == {
    *("step", "params", "batch_stats", "opt_state", "sums")
  }


def test_it_starts_at_the_weights_of_the_run(averaged, mesh, tmp_path):
  run = prepare(averaged.to_dict(), mesh)
  drawn = run.initial_state()
  held = jax.device_get(jax.tree.map(lambda x: x + 0.5, drawn.variables))
  model = run.model
  files.write(tmp_path / "w.safetensors", fr.to_torch(held, model))
  with averaged.unlocked():
    averaged.init_from = str(tmp_path / "w.safetensors")
  run = prepare(averaged.to_dict(), mesh)
  state, _ = warm_start(run, drawn)
  assert_same_bits(state.average, held)
  batch, _ = next(run.train_calls(0))
  run.train_step(state, batch)  # Both are given away, and are not one array.


def test_an_average_of_bfloat16_moves():
  variables = {"kernel": jnp.ones(3, jnp.bfloat16)}
  average = state.start(variables)
  moved = state.follow(
    average, {"kernel": jnp.zeros(3, jnp.bfloat16)}, 1, decay=0.999, every=1
  )
  np.testing.assert_allclose(moved["kernel"], 0.999, rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"ema_decay": 1.0},
      "config: ema_decay is 1.0: use 0 or more, less than 1",
    ),
    ({"ema_decay": float("nan")}, "config.ema_decay is nan: use finite"),
    ({"ema_every": 0}, "config: ema_every is 0: use 1 or more"),
  ],
)
def test_a_wrong_number_is_told(config, mesh, changes, message):
  with config.unlocked():
    config.update(changes)
  with pytest.raises(InputError, match=message):
    prepare(config.to_dict(), mesh)
