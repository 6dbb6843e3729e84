import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import load_recipe
from flax_resnet.training import train
from flax_resnet.training.log import read
from flax_resnet.training.setup import prepare
from tests.recipes import RECIPES

# Small, and of images that need nothing.
SYNTHETIC = {
  "batch_size": 96,  # Of whole copies, whatever the repeated augmentation.
  "data.eval_image_size": 40,
  "data.image_size": 32,
  "data.name": "synthetic",
  "data.train_split": "train",
  "data.eval_split": "test",
  "data.in_memory": False,
}


def small(path):
  """Returns the recipe with small, made-up images and a small batch."""
  overrides = [f"{key}={value}" for key, value in SYNTHETIC.items()]
  config = load_recipe(path, overrides)
  if config.model.get("norm_group_size"):
    config.model.norm_group_size = 32
  channels = 3
  config.augment.mean = config.augment.mean[:1] * channels
  config.augment.std = config.augment.std[:1] * channels
  return config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_a_run(path):
  """Under eval_shape: every option meets the network, nothing is computed."""
  mesh = sharding.make_mesh()
  run = prepare(small(path).to_dict(), mesh)
  batch, _ = next(run.train_calls(0))
  state = jax.eval_shape(run.initial_state)
  new = jax.eval_shape(run.train_step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  batch = next(sharding.prefetch(run.eval_batches(), mesh, ahead=0))
  sums = jax.eval_shape(run.eval_step, state, run.zero_sums(), batch)
  assert sums.keys() == {"loss", "top1", "top5", "count"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path, tmp_path, mesh):
  """Two steps of a net of one thin block, and its evaluation."""
  config = small(path)
  config.update(
    num_epochs=None,
    num_steps=2,
    log_every=1,
    eval_every=2,
    eval_batch_size=128,
    steps_per_call=min(2, config.steps_per_call),
  )
  with config.model.unlocked():
    config.model.update(stage_sizes=(1,), stage_features=(8,))
  if "early_image_sizes" in config.data:
    config.data.early_image_sizes = ((0.5, 24),)
  summary = train(config, tmp_path, mesh)
  assert summary["finished"]
  first, second = read(tmp_path / "metrics.jsonl")
  assert 0 < first["train/loss"] < 100
  assert first["train/loss"] != second["train/loss"]
  assert second["val/count"] == 256


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_record(path):
  """Its docstring says the command and what was measured."""
  text = path.read_text()
  assert f"python train.py --config configs/{path.name}" in text
  assert "Measured:" in text
