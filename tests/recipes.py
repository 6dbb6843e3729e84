"""The configs of this repository, and small ones for tests."""

from collections.abc import Mapping
import functools
import operator
import pathlib
from typing import Any

from ml_collections import ConfigDict

from flax_resnet.training import load_recipe

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def tiny(data_dir: str) -> ConfigDict:
  """Returns the digits recipe with a net of three thin blocks, for 4 steps."""
  config = load_recipe(ROOT / "configs" / "digits.py")
  return changed(
    config,
    {
      "batch_size": 64,
      "eval_batch_size": 64,
      "num_steps": 4,
      "steps_per_call": 1,
      "log_every": 2,
      "eval_every": 4,
      "checkpoint_every": 4,
      "model.stage_features": (4, 8, 8),
      "data.data_dir": data_dir,
      "data.image_size": 8,
      "augment.flip": True,
      # They take as long to compile as all the rest.
      "augment.rotation": 0.0,
      "augment.translation": 0.0,
      "augment.scaling": 0.0,
      "augment.shear": 0.0,
    },
  )


# Changes of `tiny`: compiled in a third of the time, and read in a fifth.
ONE_BLOCK = {"model.stage_sizes": (1,), "model.stage_features": (4,)}
FEW_DIGITS = {
  "data.train_split": "train[:20%]",
  "data.eval_split": "test[:20%]",
}


def one_block(data_dir: str) -> ConfigDict:
  """Returns the recipe of `tiny` with one block."""
  return changed(tiny(data_dir), ONE_BLOCK)


def tiniest(data_dir: str) -> ConfigDict:
  """Returns the recipe of `one_block` on a fifth of the digits."""
  return changed(one_block(data_dir), FEW_DIGITS)


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy with other values of keys such as "model.norm"."""
  config = config.copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    for name, value in values.items():
      *sections, key = name.split(".")
      functools.reduce(operator.getitem, sections, config)[key] = value
  return config


def write_tiny(
  folder: pathlib.Path, data_dir: str, **changes: object
) -> pathlib.Path:
  """Writes a config file of the tiny net, for train.py."""
  path = folder / "recipe.py"
  path.write_text(
    f"""
from tests import recipes


def get_config():
  return recipes.changed(recipes.tiny({data_dir!r}), {changes!r})
"""
  )
  return path


# Small, and of images that need nothing.
_SYNTHETIC = {
  "batch_size": 96,  # Whole copies, whatever the repeated augmentation.
  "data.eval_image_size": 40,
  "data.image_size": 32,
  "data.name": "synthetic",
  "data.train_split": "train",
  "data.eval_split": "test",
  "data.in_memory": False,
}


def on_synthetic_images(path: pathlib.Path) -> ConfigDict:
  """Returns a recipe with small, made-up images and a small batch."""
  config = changed(load_recipe(path), _SYNTHETIC)
  if config.model.get("norm_group_size"):
    config.model.norm_group_size = 32
  for key in ("mean", "std"):
    config.augment[key] = config.augment[key][:1] * 3
  if config.model.num_classes is None:  # Those of the data.
    config = changed(config, {"model.num_classes": 5})
  return config
