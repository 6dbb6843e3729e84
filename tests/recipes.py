"""The configs of this repository, and a tiny one for tests."""

import pathlib

from ml_collections import ConfigDict

from flax_resnet.training import load_recipe

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def tiny(data_dir: str) -> ConfigDict:
  """Returns the digits recipe with a net of three thin blocks, for 4 steps."""
  config = load_recipe(ROOT / "configs" / "digits.py")
  config.update(
    batch_size=64,
    eval_batch_size=64,
    num_steps=4,
    num_epochs=None,
    steps_per_call=1,
    log_every=2,
    eval_every=4,
    checkpoint_every=4,
  )
  config.model.stage_features = (4, 8, 8)
  config.data.data_dir = data_dir
  config.data.image_size = 8
  return config


def write_tiny(
  folder: pathlib.Path, data_dir: str, **changes: object
) -> pathlib.Path:
  """Writes a config file of the tiny net, for train.py."""
  path = folder / "recipe.py"
  path.write_text(
    f"""
from tests.recipes import tiny


def get_config():
  config = tiny({data_dir!r})
  config.update({changes!r})
  return config
"""
  )
  return path
