import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import load_recipe
from flax_resnet.training.run import prepare
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_a_run(path):
  """Under eval_shape: every option meets the network, nothing is computed."""
  overrides = [f"{key}={value}" for key, value in SYNTHETIC.items()]
  config = load_recipe(path, overrides)
  channels = 3
  if config.model.get("norm_group_size"):
    config.model.norm_group_size = 32
  config.augment.mean = config.augment.mean[:1] * channels
  config.augment.std = config.augment.std[:1] * channels
  mesh = sharding.make_mesh()
  run = prepare(config.to_dict(), mesh)
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
def test_every_recipe_is_a_record(path):
  """Its docstring says the command and what was measured."""
  text = path.read_text()
  assert f"python train.py --config configs/{path.name}" in text
  assert "Measured:" in text
