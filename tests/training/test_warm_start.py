"""Runs that start from weights, and those that train the head alone."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.insight.study import Trained
from flax_resnet.models.variables import initial_variables
from flax_resnet.training import InputError
from flax_resnet.training import train
from flax_resnet.training.log import describe
from flax_resnet.training.setup import prepare
from flax_resnet.training.init_from import warm_start
from flax_resnet.weights import files
from flax_resnet.weights import preprocessing
from flax_resnet.weights import pretrained
from tests.training.test_loop import (
  assert_same_bits,
  final_state,
  train_to,
)

FIELDS = {"stage_features": (4, 8, 8)}


@pytest.fixture
def weights(tmp_path):
  """Writes weights of the tiny net as a file; returns it and what it holds."""

  def write(num_classes=7, channels=1, name="weights.safetensors"):
    model = fr.create_model("cifar_resnet8", num_classes=num_classes, **FIELDS)
    drawn = initial_variables(model, jax.random.key(3), (8, 8, channels))
    # As trained: no scale is 1, no statistic that of the start.
    rng = np.random.default_rng(0)
    filled = jax.tree.map(
      lambda x: np.float32(rng.uniform(0.5, 1.5, x.shape)) * (x + 0.1), drawn
    )
    files.write(tmp_path / name, fr.to_torch(filled, model))
    return tmp_path / name, filled

  return write


def started(config, mesh, **changes):
  """The run, its first state, what it says, and what the seed draws."""
  with config.unlocked():
    config.update(changes)
  run = prepare(config.to_dict(), mesh)
  drawn = run.initial_state()
  state, origin = warm_start(run, drawn)
  return run, state, origin, drawn


def trunk(params):
  return {name: layer for name, layer in params.items() if name != "head"}


def test_the_trunk_is_that_of_the_file_and_the_head_that_of_the_seed(
  config, mesh, weights
):
  path, held = weights(num_classes=7)
  run, state, origin, drawn = started(config, mesh, init_from=str(path))
  assert_same_bits(trunk(state.params), trunk(held["params"]))
  assert_same_bits(state.batch_stats, held["batch_stats"])
  assert_same_bits(state.params["head"], drawn.params["head"])
  assert state.step == 0
  said = describe(run, state, origin)
  assert f"starts from the weights of {path}, with a new head: they" in said
  assert "they have 7 classes and the run 10" in said


def test_a_head_of_as_many_classes_is_kept(config, mesh, weights):
  path, held = weights(num_classes=10)
  _, state, origin, _ = started(config, mesh, init_from=str(path))
  assert_same_bits(state.params, held["params"])
  assert origin == (f"starts from the weights of {path}, with their head",)


def test_weights_without_a_head_get_one(config, mesh, weights, tmp_path):
  path, held = weights(num_classes=0)
  _, state, origin, drawn = started(config, mesh, init_from=str(path))
  assert_same_bits(trunk(state.params), trunk(held["params"]))
  assert_same_bits(state.params["head"], drawn.params["head"])
  assert "with a new head: they have none" in origin[0]
  files.write_checkpoint(tmp_path / "flax", held)
  _, again, _, _ = started(config, mesh, init_from=str(tmp_path / "flax"))
  assert_same_bits(again.params, state.params)


def test_a_run_starts_from_another_run(config, mesh, tmp_path, monkeypatch):
  config.num_steps = 2
  train(config, tmp_path / "first", mesh)
  first = final_state(config, tmp_path / "first", mesh)
  monkeypatch.setenv("HOME", str(tmp_path))
  _, state, origin, _ = started(config, mesh, init_from="~/first")
  assert_same_bits(state.variables, first.variables)
  # All that the optimizer and the metrics remember is left behind.
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
  assert len(origin) == 1


def test_a_study_compares_with_the_weights_of_the_start(
  config, mesh, weights, tmp_path
):
  path, held = weights(num_classes=10)
  with config.unlocked():
    config.init_from = str(path)
  train(config, tmp_path / "run", mesh)
  assert_same_bits(Trained.load(tmp_path / "run").before.params, held["params"])
  path.unlink()
  with pytest.raises(InputError, match=r"config.init_from: there is no weight"):
    Trained.load(tmp_path / "run")


def test_without_weights_a_run_starts_as_drawn(config, mesh):
  _, state, origin, drawn = started(config, mesh)
  assert state is drawn
  assert origin == ()


def test_weights_take_the_types_of_the_run(config, mesh, weights, tmp_path):
  _, held = weights()
  half = jax.tree.map(lambda x: x.astype(np.float16), held)
  files.write_checkpoint(tmp_path / "half", half)
  _, state, _, _ = started(config, mesh, init_from=str(tmp_path / "half"))
  found = {x.dtype for x in jax.tree.leaves(state.variables)}
  assert found == {np.dtype("float32")}


def test_other_colours_are_told(config, mesh, weights, monkeypatch):
  path, _ = weights()
  load = pretrained.load_pretrained

  def loaded(mean):
    expected = preprocessing.Preprocessing(8, 1.0, "bilinear", mean, (0.35,))

    def patched(*args, **fields):
      found = load(*args, **fields)
      return pretrained.Pretrained(found.model, found.variables, expected)

    return patched

  module = "flax_resnet.training.warm_start.load_pretrained"
  monkeypatch.setattr(module, loaded((0.5,)))
  _, _, origin, _ = started(config, mesh, init_from=str(path))
  assert origin[1] == (
    "warning: they expect config.augment.mean=(0.5,) and "
    "config.augment.std=(0.35,), and the run has (0.3,) and (0.35,)"
  )
  monkeypatch.setattr(module, loaded((0.3,)))
  assert len(started(config, mesh, init_from=str(path))[2]) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_frozen_trunk_keeps_its_bits_while_the_head_moves(
  config, mesh, weights, tmp_path, optimizer, steps_per_call
):
  path, held = weights()
  config.optim.name = optimizer
  config.steps_per_call = steps_per_call
  config.log_every = 4
  with config.unlocked():
    config.update(init_from=str(path), freeze_trunk=True)
  train(config, tmp_path / "run", mesh)
  state = final_state(config, tmp_path / "run", mesh)
  assert state.step == 4
  assert_same_bits(trunk(state.params), trunk(held["params"]))
  assert_same_bits(state.batch_stats, held["batch_stats"])
  drawn = prepare(config.to_dict(), mesh).initial_state().params["head"]
  for name, before in drawn.items():
    assert np.abs(state.params["head"][name] - before).max() > 1e-4


def test_a_frozen_trunk_works_as_in_evaluation(config, mesh, weights):
  """The loss is that of running statistics, and no block is dropped."""
  path, _ = weights(num_classes=10)
  for key in ("rotation", "translation", "scaling", "shear"):
    config.augment[key] = 0.0
  config.loss.label_smoothing = 0.0
  with config.model.unlocked():
    config.model.stochastic_depth = 0.9
  run, state, _, _ = started(
    config, mesh, init_from=str(path), freeze_trunk=True
  )
  batch = next(run.train_batches(0))
  expected = run.eval_step(state, run.zero_sums(), batch)["loss"]
  after = run.train_step(state, batch)
  np.testing.assert_allclose(after.sums["loss"], expected, rtol=1e-5)


def operations(lowered):
  """How many matrix products and convolutions a program has."""
  found = r"stablehlo\.(?:convolution|dot_general)\b"
  return len(re.findall(found, lowered.as_text()))


def test_nothing_is_computed_backwards_through_a_frozen_trunk(
  config, mesh, weights
):
  path, _ = weights()
  full, frozen = [], []
  for found, freeze in ((full, False), (frozen, True)):
    run, state, _, _ = started(
      config, mesh, init_from=str(path), freeze_trunk=freeze
    )
    batch, _ = next(run.train_calls(0))
    found += [
      operations(step.lower(*arguments))
      for step, arguments in (
        (run.train_step, (state, batch)),
        (run.eval_step, (state, run.zero_sums(), batch)),
      )
    ]
  step, forward = frozen
  assert step == forward + 1  # The gradient of the head's kernel.
  assert full[0] > 2.5 * step


def test_the_optimizer_remembers_nothing_of_a_frozen_trunk(
  config, mesh, weights
):
  path, _ = weights()
  run, state, origin, drawn = started(
    config, mesh, init_from=str(path), freeze_trunk=True
  )
  sizes = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sorted(sizes) == [10, 80]
  assert jax.tree.structure(state) == jax.tree.structure(drawn)
  said = describe(run, state, origin)
  assert "the head alone is trained: 90 of 2,518 parameters" in said
  assert "BatchNorm keeps its running statistics" in said


@pytest.mark.parametrize("freeze_trunk", [False, True])
def test_a_run_continues_without_its_weights_to_the_same_bits(
  config, mesh, weights, tmp_path, monkeypatch, capsys, freeze_trunk
):
  path, _ = weights()
  with config.unlocked():
    config.update(init_from=str(path), freeze_trunk=freeze_trunk)
  config.update(num_steps=8, log_every=3, eval_every=8)
  train(config, tmp_path / "whole", mesh)
  train_to(config, tmp_path / "parts", mesh, 3, monkeypatch)
  path.unlink()
  capsys.readouterr()
  train(config, tmp_path / "parts", mesh)
  out = capsys.readouterr().out
  assert "continues after step 3" in out
  assert "starts from" not in out
  assert_same_bits(
    final_state(config, tmp_path / "whole", mesh),
    final_state(config, tmp_path / "parts", mesh),
  )


def test_a_run_that_has_saved_nothing_starts_again(
  config, mesh, weights, tmp_path
):
  path, _ = weights()
  with config.unlocked():
    config.init_from = str(path)
  train(config, tmp_path / "run", mesh)
  state = final_state(config, tmp_path / "run", mesh)
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  train(config, tmp_path / "run", mesh)
  assert_same_bits(final_state(config, tmp_path / "run", mesh), state)


def test_an_older_workdir_is_continued(config, mesh, tmp_path):
  train(config, tmp_path, mesh)
  written = json.loads((tmp_path / "config.json").read_text())
  assert not {"init_from", "freeze_trunk"} & written.keys()
  train(config, tmp_path, mesh)


def test_weights_of_another_run_than_the_recipe_says(config, mesh, tmp_path):
  config.num_steps = 1
  train(config, tmp_path / "first", mesh)
  with config.model.unlocked():
    del config.model.stage_features
  with pytest.raises(InputError, match=r"config.init_from: .* of this model"):
    started(config, mesh, init_from=str(tmp_path / "first"))
