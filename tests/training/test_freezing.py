"""What is frozen stays as it is, costs no gradient, and thaws in time."""

import re

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.errors import InputError
from flax_resnet.models.variables import initial_variables, variable_shapes
from flax_resnet.training import train
from flax_resnet.training.freezing import Freezing
from flax_resnet.training.init_from import start_from_weights
from flax_resnet.weights import files
from tests import recipes, runs

FIELDS = {"stage_sizes": (1, 1), "stage_features": (4, 8)}
TWO_STAGES = {f"model.{key}": value for key, value in FIELDS.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """The path of weights of a net of two stages, as trained, of 10 classes."""
  path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
  model = fr.create_model("cifar_resnet8", num_classes=10, **FIELDS)
  drawn = initial_variables(model, jax.random.key(3), (8, 8, 1))
  rng = np.random.default_rng(0)
  filled = jax.tree.map(
    lambda x: np.float32(rng.uniform(0.5, 1.5, x.shape)) * (x + 0.1), drawn
  )
  files.write(path, fr.to_torch(filled, model))
  return path


@pytest.fixture
def config(data_dir, weights):
  return recipes.changed(
    recipes.tiniest(data_dir), {"init_from": str(weights), **TWO_STAGES}
  )


def started(config, values):
  run = runs.make_run(config, values)
  state, _ = start_from_weights(run, run.drawn_state())
  return run, state


def moved(before, after):
  """Returns the modules of which anything has changed."""
  return {
    name
    for name, tree in before.items()
    if not all(
      np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(tree), jax.tree.leaves(after[name]), strict=True
      )
    )
  }


ALL = {"stem", "stage1_block1", "stage2_block1", "head"}
STATS = ALL - {"head"}
REST = {"stage2_block1", "head"}


@pytest.mark.parametrize(
  ("values", "params", "batch_stats"),
  [
    ({"freeze_stages": 1}, REST, {"stage2_block1"}),
    ({"freeze_stages": 1, "freeze_batch_stats": False}, REST, STATS),
    *(
      pytest.param(*case, marks=pytest.mark.deep)
      for case in (
        ({"freeze_stages": 0}, ALL - {"stem"}, STATS - {"stem"}),
        ({"freeze_stages": 2}, {"head"}, set()),
        ({"freeze_trunk": True, "freeze_batch_stats": False}, {"head"}, STATS),
      )
    ),
  ],
)
def test_a_frozen_part_keeps_its_bits_while_the_rest_moves(
  config, values, params, batch_stats
):
  """Weight decay, momentum and parts of a batch do not touch it either."""
  run, state = started(
    config,
    {"accumulate": 3, "batch_size": 48, "model.norm_group_size": 8, **values},
  )
  before = jax.device_get(state)
  after = jax.device_get(runs.after_steps(run, 3, state))
  assert moved(before.params, after.params) == params
  assert moved(before.batch_stats, after.batch_stats) == batch_stats


def test_frozen_stages_work_as_in_evaluation(config, weights):
  """Neither the batch's statistics nor dropped blocks get into their maps."""
  model = fr.create_model(
    "cifar_resnet8", num_classes=10, stochastic_depth=0.9, **FIELDS
  )
  _, variables = fr.from_pretrained(weights, "cifar_resnet8", **FIELDS)
  images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))

  def maps(**options):
    found, _ = model.apply(
      variables,
      images,
      method="features",
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(1)},
      **options,
    )
    return found

  evaluated, frozen = maps(train=False), maps(train=True, frozen_stages=1)
  for name in ("stem", "stage1"):
    np.testing.assert_array_equal(frozen[name], evaluated[name])
  assert np.abs(frozen["stage2"] - evaluated["stage2"]).max() > 0.01


def operations(lowered):
  """Returns how many matrix products and convolutions a program has."""
  found = r"stablehlo\.(?:convolution|dot_general)\b"
  return len(re.findall(found, lowered.as_text()))


def test_nothing_is_computed_backwards_through_frozen_stages(config):
  """With their statistics moving, too."""

  def count(**values):
    run, state = started(config, values)
    batch, _ = next(run.train_inputs(0))
    step = operations(run.train_step.lower(state, batch))
    variables, sums = state.eval_variables, run.zero_sums()
    return step, operations(run.eval_step.lower(variables, sums, batch))

  (full, forward), *frozen = (
    count(freeze_stages=stages) for stages in (None, 1, 2)
  )
  (one, _), (two, _) = frozen
  assert full > one > two
  assert two == forward + 1  # The gradient of the head's kernel.
  assert count(freeze_stages=2, freeze_batch_stats=False) == (two, forward)


def test_the_optimizer_remembers_nothing_of_what_is_never_trained(config):
  _, state = started(config, {"freeze_stages": 1})
  trained = Freezing(stages=1).trained(state.params)
  sizes = sorted(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert sizes == sorted(x.size for x in jax.tree.leaves(trained))


@pytest.mark.parametrize(
  "part",
  [
    {"freeze_trunk": True},
    pytest.param({"freeze_stages": 1}, marks=pytest.mark.deep),
  ],
)
def test_what_is_frozen_thaws_at_its_epoch(config, part):
  """287 examples in batches of 64: epoch 0.7 begins after 3 steps."""
  run, state = started(config, {"freeze_until": 0.7, "num_steps": 6, **part})
  assert run.freezing.until == 3
  before = jax.device_get(state)
  frozen = runs.after_steps(run, 3, state)
  early = moved(before.params, jax.device_get(frozen.params))
  assert early == ({"head"} if "freeze_trunk" in part else REST)
  thawed = runs.after_steps(run, 4, frozen)
  assert moved(before.params, jax.device_get(thawed.params)) == ALL
  assert moved(before.batch_stats, jax.device_get(thawed.batch_stats)) == STATS


@pytest.mark.parametrize(
  "name", ["sgd", pytest.param("adamw", marks=pytest.mark.deep)]
)
def test_a_run_killed_around_the_thaw_ends_with_the_same_bits(
  config, tmp_path, mesh, monkeypatch, name
):
  """Before it, at it and after it; with all else that fine-tuning has."""
  config = recipes.changed(
    config,
    {
      "freeze_trunk": True,
      "freeze_until": 0.7,
      "num_steps": 6,
      "optim.name": name,
    },
  )
  with config.unlocked(), config.optim.unlocked():
    config.optim.layer_decay = 0.7
    config.optim.head_rate_factor = 10.0
    config.optim.clip_norm = 1.0
  train(config, tmp_path / "whole", mesh)
  for stop in (2, 3, 4):
    runs.train_to(config, tmp_path / "parts", mesh, stop, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  whole, parts = (
    runs.saved_state(tmp_path / name) for name in ("whole", "parts")
  )
  runs.assert_same_bits(whole, parts)
  assert runs.rows_of(tmp_path / "whole") == runs.rows_of(tmp_path / "parts")


@pytest.mark.deep
def test_several_steps_by_one_call_go_across_the_thaw(config):
  values = {
    "freeze_stages": 1,
    "freeze_until": 0.7,
    "num_steps": 6,
    "log_every": 6,
    "eval_every": 6,
    "checkpoint_every": 6,
  }
  run, state = started(config, values)
  one = jax.device_get(runs.after_steps(run, 6, state))
  run, state = started(config, {**values, "steps_per_call": 6})
  runs.assert_same_bits(one, jax.device_get(runs.after_steps(run, 6, state)))


def test_stages_are_counted_as_mmpretrain_and_torchvision_do():
  """`trainable_layers` of torchvision's detection is 4 minus ours."""
  model = fr.create_model("resnet18", num_classes=10)
  params = variable_shapes(model)["params"]
  for stages in range(5):
    frozen = set(params) - set(Freezing(stages=stages).trained(params))
    # torchvision/models/detection/backbone_utils.py
    kept = ["layer4", "layer3", "layer2", "layer1", "conv1"][: 4 - stages]
    wanted = {
      name
      for name in params
      if name != "head"
      and not any(
        name.startswith(layer.replace("layer", "stage") + "_") for layer in kept
      )
    }
    assert frozen == wanted


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    (
      {"freeze_stages": 3},
      "config.freeze_stages is 3 and the network has 2 stages: use 0 to 2, or "
      "freeze_trunk=True",
    ),
    (
      {"freeze_stages": 1, "freeze_trunk": True},
      "config: freeze_trunk is True, which freezes all stages, and "
      "freeze_stages 1: use one of them",
    ),
    (
      {"freeze_until": 2.0},
      "config: freeze_until is 2.0 and nothing is frozen: use None, or set "
      "freeze_trunk or freeze_stages",
    ),
    (
      {"freeze_batch_stats": False},
      "config: freeze_batch_stats is False and nothing is frozen: use True, or "
      "set freeze_trunk or freeze_stages",
    ),
    (
      {"freeze_stages": 1, "init_from": None},
      "config: freeze_stages is 1 and init_from None, so that a part of the "
      "network would stay as it was drawn: give init_from, the weights to "
      "start from",
    ),
  ],
)
def test_what_cannot_be_frozen(config, values, sentence):
  with pytest.raises(InputError) as error:
    runs.make_run(config, values)
  assert str(error.value) == sentence
