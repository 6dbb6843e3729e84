"""Recipes: config files, and what the command line changes in them."""

import ast
from collections.abc import Sequence
import importlib.util
import pathlib
import sys
from typing import Any, cast

from ml_collections import ConfigDict

from flax_resnet.training.schema import InputError, nearest


def load_recipe(
  path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> ConfigDict:
  """Returns the config that a file's `get_config()` makes.

  Args:
    path: Of a Python file. It is run: it is code, not data.
    overrides: As on the command line: "optim.learning_rate=0.05". A length
      given here, `num_steps` or `num_epochs`, replaces the file's.

  Raises:
    InputError: When there is no such file, when it fails, or when it has no
      such key.
  """
  config = _run(pathlib.Path(path))
  keys = [_override(config, text) for text in overrides]
  lengths = {"num_epochs", "num_steps"}
  if len(given := lengths & set(keys)) == 1:
    (other,) = lengths - given
    config[other] = None
  return config


def _run(path: pathlib.Path) -> ConfigDict:
  if not path.is_file():
    raise InputError(f"config file {path} is not there: give the path of one")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {path} is not Python: give a .py file")
  module = importlib.util.module_from_spec(spec)
  # A recipe may import another one that lies beside it.
  sys.path.insert(0, str(path.absolute().parent))
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except Exception as error:  # Whatever the user's own code raises.
    raise InputError(
      f"config file {path} fails with {type(error).__name__}: {error}"
    ) from error
  finally:
    sys.path.pop(0)
  if not isinstance(config, ConfigDict):
    raise InputError(f"get_config() of {path} does not return a ConfigDict")
  return config


def _override(config: ConfigDict, text: str) -> str:
  """Applies "a.b=value" and returns "a.b".

  The last name may be new to the file: an option that it leaves at its
  default. Whether there is such an option is for the schema to say.
  """
  path, equals, value = text.partition("=")
  if not equals:
    raise InputError(f"--config.{text} has no value: write --config.{text}=…")
  *sections, key = path.split(".")
  section = cast(Any, config)
  for depth, name in enumerate(sections):
    where = ".".join(["config", *sections[: depth + 1]])
    if name not in section:
      raise InputError(f"{where} is unknown: {nearest(name, section)}")
    if not isinstance(section[name], ConfigDict):
      raise InputError(f"{where} has no keys: set {where} itself")
    section = section[name]
  if isinstance(section.get(key), ConfigDict):
    keys = ", ".join(section[key])
    raise InputError(f"config.{path} is a section: set one of its keys, {keys}")
  with section.unlocked(), section.ignore_type():
    section[key] = _value(value)
  return path


def _value(text: str) -> Any:
  """Reads a Python literal, or else a string."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
