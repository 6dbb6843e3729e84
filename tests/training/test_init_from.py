"""Runs that start from weights, and those that train the head alone."""

import re
import shutil

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.errors import InputError
from flax_resnet.models.variables import initial_variables
from flax_resnet.training import init_from, train
from flax_resnet.training.init_from import start_from_weights
from flax_resnet.weights import files, Pretrained
from flax_resnet.weights.preprocessing import Preprocessing
from tests import recipes, runs

FIELDS = {"stage_sizes": (1,), "stage_features": (4,)}


def write_weights(path, num_classes=7):
  """Writes weights of the net of one block; returns what is in them."""
  model = fr.create_model("cifar_resnet8", num_classes=num_classes, **FIELDS)
  drawn = initial_variables(model, jax.random.key(3), (8, 8, 1))
  # As trained: no scale is 1, no statistic that of the start.
  rng = np.random.default_rng(0)
  filled = jax.tree.map(
    lambda x: np.float32(rng.uniform(0.5, 1.5, x.shape)) * (x + 0.1), drawn
  )
  files.write(path, fr.to_torch(filled, model))
  return filled


@pytest.fixture
def config(data_dir):
  return recipes.tiniest(data_dir)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.safetensors"


def started(config, path=None, **values):
  """Returns the run, its first state, its lines, and what the seed draws."""
  weights = path and str(path)
  run = runs.make_run(config, {"init_from": weights, **values})
  drawn = run.drawn_state()
  state, lines = start_from_weights(run, drawn)
  return run, state, lines, drawn


def trunk(params):
  return {name: layer for name, layer in params.items() if name != "head"}


def test_the_trunk_is_that_of_the_file_and_the_head_that_of_the_seed(
  config, path
):
  weights = write_weights(path, num_classes=7)
  _, state, lines, drawn = started(config, path)
  runs.assert_same_bits(trunk(state.params), trunk(weights["params"]))
  runs.assert_same_bits(state.batch_stats, weights["batch_stats"])
  runs.assert_same_bits(state.params["head"], drawn.params["head"])
  assert state.step == 0
  assert lines == [
    f"starts from the weights of {path}, with a new head: they have 7 classes "
    "and the run 10"
  ]


def test_a_head_of_as_many_classes_is_kept(config, path):
  weights = write_weights(path, num_classes=10)
  _, state, lines, _ = started(config, path)
  runs.assert_same_bits(state.params, weights["params"])
  assert lines == [f"starts from the weights of {path}, with their head"]


def test_a_tag_is_taken_by_its_name(config):
  """Of weights in the package, so that nothing is asked of a hub."""
  tag = "cifar_resnet8.digits"
  values = {
    "model.stage_sizes": (1, 1, 1),
    "model.stage_features": (32, 64, 128),
  }
  _, state, lines, _ = started(config, tag, **values)
  runs.assert_same_bits(state.params, fr.from_pretrained(tag)[1]["params"])
  assert lines[0] == f"starts from the weights of {tag}, with their head"


def test_weights_without_a_head_get_one(config, path, tmp_path):
  weights = write_weights(path, num_classes=0)
  _, state, lines, drawn = started(config, path)
  runs.assert_same_bits(trunk(state.params), trunk(weights["params"]))
  runs.assert_same_bits(state.params["head"], drawn.params["head"])
  assert lines[0].endswith("with a new head: they have none")
  files.write_checkpoint(tmp_path / "flax", weights)
  _, again, _, _ = started(config, tmp_path / "flax")
  runs.assert_same_bits(again.params, state.params)


def test_weights_take_the_types_of_the_run(config, path, tmp_path):
  weights = write_weights(path)
  half = jax.tree.map(lambda x: x.astype(np.float16), weights)
  files.write_checkpoint(tmp_path / "half", half)
  _, state, _, _ = started(config, tmp_path / "half")
  found = {x.dtype for x in jax.tree.leaves(state.variables)}
  assert found == {np.dtype("float32")}


def test_a_moving_average_starts_at_the_weights(config, path):
  write_weights(path)
  _, state, _, _ = started(config, path, ema_decay=0.9)
  runs.assert_same_bits(state.average, state.variables)


def test_another_normalization_is_warned_of(config, path, monkeypatch):
  write_weights(path)
  load = init_from.load_pretrained

  def expect(mean):
    expected = Preprocessing(8, 1.0, "bilinear", mean, (0.35,))

    def patched(*args, **fields):
      found = load(*args, **fields)
      return Pretrained(found.model, found.variables, expected)

    monkeypatch.setattr(init_from, "load_pretrained", patched)
    return started(config, path)[2]

  assert expect((0.5,))[1] == (
    "warning: they expect config.augment.mean=(0.5,) and "
    "config.augment.std=(0.35,), and the run has (0.3,) and (0.35,)"
  )
  assert len(expect((0.3,))) == 1


@pytest.fixture(scope="module")
def warm(data_dir, tmp_path_factory):
  """A folder of weights, their run, and the config of both."""
  folder = tmp_path_factory.mktemp("warm")
  weights = folder / "weights.safetensors"
  write_weights(weights)
  config = recipes.changed(
    recipes.tiniest(data_dir),
    {
      "init_from": str(weights),
      "num_steps": 6,
      "log_every": 2,
      "eval_every": 6,
    },
  )
  train(config, folder / "run", runs.mesh_of(1))
  return folder, config


def test_a_run_starts_from_another_run(warm, config, monkeypatch):
  folder, _ = warm
  first = runs.saved_state(folder / "run")
  monkeypatch.setenv("HOME", str(folder))
  _, state, lines, _ = started(config, "~/run")
  runs.assert_same_bits(state.variables, first.variables)
  # All that the optimizer and the metrics remember is left behind.
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
  assert not any(np.any(x) for x in state.sums.values())
  assert len(lines) == 1


def test_weights_of_another_run_than_the_recipe_says(warm, config):
  """A workdir says its own network, whatever the recipe of this run says."""
  folder, _ = warm
  with config.model.unlocked():
    del config.model.stage_sizes, config.model.stage_features
  with pytest.raises(InputError, match=r"config.init_from: .* of this network"):
    started(config, folder / "run")


def test_a_run_needs_its_weights_until_it_has_saved(
  warm, tmp_path, mesh, monkeypatch, capsys
):
  folder, config = warm
  shutil.copytree(folder / "run", tmp_path / "again")
  shutil.rmtree(tmp_path / "again" / "checkpoints")
  train(config, tmp_path / "again", mesh)
  assert "starts from the weights of" in capsys.readouterr().out

  runs.train_to(config, tmp_path / "parts", mesh, 3, monkeypatch)
  weights = folder / "weights.safetensors"
  hidden = weights.rename(folder / "hidden.safetensors")
  capsys.readouterr()
  train(config, tmp_path / "parts", mesh)
  out = capsys.readouterr().out
  assert "continues after step 3" in out
  assert "starts from" not in out
  whole = runs.saved_state(folder / "run")
  for name in ("again", "parts"):
    runs.assert_same_bits(runs.saved_state(tmp_path / name), whole)
  hidden.rename(weights)


@pytest.mark.parametrize(
  ("optimizer", "steps_per_call"),
  [
    ("muon", 3),
    pytest.param("sgd", 3, marks=pytest.mark.deep),
  ],
)
def test_a_frozen_trunk_keeps_its_bits_while_the_head_moves(
  config, path, optimizer, steps_per_call
):
  """The optimizer's own decay of weights is part of what must not move it."""
  weights = write_weights(path)
  run, state, _, drawn = started(
    config,
    path,
    freeze_trunk=True,
    steps_per_call=steps_per_call,
    **{"optim.name": optimizer, "log_every": 3, "num_steps": 6},
  )
  before = jax.device_get(drawn.params["head"])
  state = runs.after_steps(run, 6, state)
  runs.assert_same_bits(trunk(state.params), trunk(weights["params"]))
  runs.assert_same_bits(state.batch_stats, weights["batch_stats"])
  for name, was in before.items():
    assert np.abs(state.params["head"][name] - was).max() > 1e-4


def test_a_frozen_trunk_works_as_in_evaluation(config, path):
  """The loss is that of running statistics, and no block is dropped."""
  write_weights(path, num_classes=10)
  run, state, _, _ = started(
    config,
    path,
    freeze_trunk=True,
    **{
      "augment.flip": False,
      "loss.label_smoothing": 0.0,
      "model.stochastic_depth": 0.9,
    },
  )
  batch = next(run.train_batches(0))
  sums = run.eval_step(state.eval_variables, run.zero_sums(), batch)
  after = run.train_step(state, batch)
  np.testing.assert_allclose(after.sums["loss"], sums["loss"], rtol=1e-5)


def operations(lowered):
  """Returns how many matrix products and convolutions a program has."""
  found = r"stablehlo\.(?:convolution|dot_general)\b"
  return len(re.findall(found, lowered.as_text()))


def test_nothing_is_computed_backwards_through_a_frozen_trunk(config, path):
  write_weights(path)
  counts = []
  for freeze_trunk in (False, True):
    run, state, _, _ = started(config, path, freeze_trunk=freeze_trunk)
    batch, _ = next(run.train_inputs(0))
    variables, sums = state.eval_variables, run.zero_sums()
    step = operations(run.train_step.lower(state, batch))
    forward = operations(run.eval_step.lower(variables, sums, batch))
    counts.append((step, forward))
  (full, _), (step, forward) = counts
  assert step == forward + 1  # The gradient of the head's kernel.
  # Gradients of two kernels of one shape are one function, counted once.
  assert full >= 2 * step


def test_the_optimizer_remembers_nothing_of_a_frozen_trunk(config, path):
  write_weights(path)
  _, state, _, drawn = started(config, path, freeze_trunk=True)
  sizes = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sorted(sizes) == [10, 40]
  assert jax.tree.structure(state) == jax.tree.structure(drawn)
