"""Recipes: files that say how a network is trained, and changes to them.

A recipe is a Python file with a function `get_config` that returns a
ConfigDict; those of this package are in `configs/`. `schema` checks what is in
it.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
import importlib.util
import inspect
import pathlib
import sys
from typing import Any, cast

from etils import epy

from flax_resnet import storage
from flax_resnet.errors import InputError, suggestion

with epy.lazy_imports():  # Slow to import, and "--help" does not need it.
  import ml_collections

_PACKAGE = pathlib.Path(__file__).parent
# In a wheel; beside the package in its repository.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")

# Keys that hold text, and may be None or left out.
_TEXT = (
  *("data_dir", "init_from", "root", "path_column", "image_column"),
  *("label_column", "split_column", "label_separator", "classes_file"),
  *("config_name",),
)


def list_recipes() -> list[str]:
  """Returns the names of the recipes of this package."""
  return sorted(path.stem for path in _folder().glob("*.py"))


def find_recipe(name: str | pathlib.Path) -> pathlib.Path:
  """Returns the file of a recipe: config.json of a run, or Python.

  Args:
    name: one of `list_recipes()`, the path of a Python file, the workdir of a
      run, or its config.json. What is there as a path is taken as one.

  Raises:
    InputError: if there is no such recipe.
  """
  path = pathlib.Path(name).expanduser()
  if (path / "config.json").is_file():
    return path / "config.json"
  if path.is_file():
    return path
  if path.is_dir() and str(name) not in list_recipes():
    raise InputError(f"config {path} is a folder without config.json: no run")
  if len(path.parts) == 1 and not path.suffix:
    names = list_recipes()
    if path.name in names:
      return _folder() / f"{path.name}.py"
    raise InputError(
      f"there is no recipe {path.name!r}: {suggestion(path.name, names)}"
    )
  raise InputError(
    f"config file {path} is not there: give the path of one, or the name of a "
    "recipe, such as digits"
  )


def _folder() -> pathlib.Path:
  return next(folder for folder in _FOLDERS if folder.is_dir())


def load_recipe(
  path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> "ml_collections.ConfigDict":
  """Returns the config that a file's `get_config()` makes, or that of a run.

  Args:
    path: name or path of a recipe, see `find_recipe`. A Python file is run: it
      is code, not data.
    overrides: changes as on the command line, "optim.learning_rate=0.05". A
      length given here, `num_steps` or `num_epochs`, replaces the file's; a
      `batch_size` is handed to `get_config`, if it takes one, for the rates
      that depend on it.

  Raises:
    InputError: if there is no such file, if it fails, or if it has no such key.
  """
  if isinstance(overrides, str):
    raise InputError(
      f"overrides is {overrides!r:.100}: give a list, [{overrides!r:.100}]"
    )
  path = find_recipe(path)
  if path.name == "config.json":
    return override(storage.read_config(path.parent), overrides)
  return override(_run(path, overrides), overrides)


def override(
  config: "Mapping[str, Any] | ml_collections.ConfigDict",
  overrides: Sequence[str],
) -> "ml_collections.ConfigDict":
  """Returns a config with some keys changed, as in `load_recipe`."""
  try:
    config = ml_collections.ConfigDict(cast(Any, config))
  except (AttributeError, TypeError, ValueError) as error:  # Of a key's name.
    raise InputError(f"the config cannot be read: {error}") from error
  keys = [_override(config, text) for text in overrides]
  lengths = {"num_epochs", "num_steps"}
  if len(given := lengths & set(keys)) == 1:
    (other,) = lengths - given
    config[other] = None
  return config


def _run(
  path: pathlib.Path, overrides: Sequence[str]
) -> "ml_collections.ConfigDict":
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {path} is not Python: give a .py file")
  module = importlib.util.module_from_spec(spec)
  # A recipe may import another one that lies beside it.
  sys.path.insert(0, str(path.absolute().parent))
  try:
    spec.loader.exec_module(module)
    config = module.get_config(**_batch_size(module.get_config, overrides))
  except Exception as error:  # Whatever the user's own code raises.
    failure = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(f"config file {path} fails with {failure}") from error
  finally:
    sys.path.pop(0)
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(f"get_config() of {path} does not return a ConfigDict")
  return config


def _batch_size(
  get_config: Callable[..., Any], overrides: Sequence[str]
) -> dict[str, int]:
  """Returns the batch size that overrides give, for a function that takes it.

  One that is no number of examples is left to `build` to refuse.
  """
  if "batch_size" not in inspect.signature(get_config).parameters:
    return {}
  size = None
  for key, _, value in (text.partition("=") for text in overrides):
    size = _parsed(value, False) if key == "batch_size" else size
  return {"batch_size": size} if type(size) is int and size > 0 else {}


def _override(config: "ml_collections.ConfigDict", text: str) -> str:
  """Applies "a.b=value" and returns "a.b".

  The last name may be new to the file: an option that it leaves at its
  default. Whether there is such an option is for `build` to say.
  """
  path, equals, value = text.partition("=")
  if not equals:
    raise InputError(f"--config.{text} has no value: write --config.{text}=…")
  *sections, key = path.split(".")
  section = cast(Any, config)
  for depth, name in enumerate(sections):
    where = ".".join(["config", *sections[: depth + 1]])
    if name not in section:
      raise InputError(f"{where} is unknown: {suggestion(name, section)}")
    if not isinstance(section[name], ml_collections.ConfigDict):
      raise InputError(f"{where} has no keys: set {where} itself")
    section = section[name]
  if isinstance(section.get(key), ml_collections.ConfigDict):
    keys = ", ".join(section[key])
    raise InputError(f"config.{path} is a section: set one of its keys, {keys}")
  is_text = key in _TEXT or isinstance(section.get(key), str)
  with section.unlocked(), section.ignore_type():
    section[key] = _parsed(value, is_text)
  return path


def _parsed(text: str, is_text: bool) -> Any:
  """Returns the Python literal that a text is, or else the text.

  Of a key that holds text, a number is text: a folder may be called
  2024_05_01.
  """
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  return text if is_text and not isinstance(value, str | None) else value
