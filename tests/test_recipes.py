"""Every recipe of this repository makes a run, trains, and is a record."""

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import train
from flax_resnet.training.log import read_rows
from flax_resnet.training.setup import set_up
from tests.recipes import changed, on_synthetic_images, RECIPES, ROOT

# The others derive from these, and add no key that these do not try.
TRAINED = ("cifar10_fast", "imagenet_progressive", "imagenet_rsb_a2")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_a_run(path):
  """Under eval_shape: every option meets the network, nothing is computed.

  The network has a block a stage.
  """
  mesh = sharding.make_mesh()
  config = on_synthetic_images(path)
  stages = set_up(config.to_dict(), mesh).model.stage_sizes
  one_each = {"model.stage_sizes": (1,) * len(stages)}
  run = set_up(changed(config, one_each).to_dict(), mesh)
  batch, _ = next(run.train_inputs(0))
  state = jax.eval_shape(run.drawn_state)
  new = jax.eval_shape(run.train_step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  batch = next(sharding.prefetch(run.eval_batches(), mesh, ahead=0))
  sums = jax.eval_shape(
    run.eval_step, state.eval_variables, run.zero_sums(), batch
  )
  assert sums.keys() == {"loss", "top1", "top5", "count"}


@pytest.mark.deep
@pytest.mark.parametrize("name", TRAINED)
def test_recipes_train(name, tmp_path, mesh):
  """Two steps of a net of one thin block, and its evaluation."""
  config = on_synthetic_images(ROOT / "configs" / f"{name}.py")
  values = {
    "num_epochs": None,
    "num_steps": 2,
    "log_every": 1,
    "eval_every": 2,
    "eval_batch_size": 128,
    "steps_per_call": min(2, config.get("steps_per_call", 1)),
    "model.stage_sizes": (1,),
    "model.stage_features": (8,),
  }
  if "early_image_sizes" in config.data:
    values["data.early_image_sizes"] = ((0.5, 24),)
  summary = train(changed(config, values), tmp_path, mesh)
  assert summary["finished"]
  first, second = read_rows(tmp_path / "metrics.jsonl")
  assert 0 < first["train/loss"] < 100
  assert first["train/loss"] != second["train/loss"]
  assert second["val/count"] == 256


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_record(path):
  """Its docstring says the command and what was measured."""
  text = path.read_text()
  assert f"python train.py --config configs/{path.name}" in text
  assert "Measured:" in text
