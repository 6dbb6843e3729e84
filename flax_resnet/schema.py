"""The schema of a recipe: the signatures of the functions that it calls.

A section of a config is the keyword arguments of a function, or of several,
`create_model(**config.model)`. So the signature is the schema, and a misspelt
key, a missing one, a value of the wrong type or out of its range ends with a
sentence before anything is built. Types and ranges are checked here and nowhere
else: a parameter says them in its annotation,

    label_smoothing: Annotated[float, Range(minimum=0, below=1)] = 0.0

and, where the name of its type would tell a user nothing, what to use instead:

    dtype: Annotated[DTypeLike, "float32, bfloat16 or float64"] = jnp.float32
"""

import ast
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import inspect
import numbers
import pathlib
import sys
import types
import typing
from typing import Annotated, Any, cast, Literal, TypeVar

from etils import epy

from flax_resnet.errors import InputError, reported_as, suggestion

with epy.lazy_imports():  # Slow to import, and "--help" needs neither.
  import beartype.door
  import ml_collections

T = TypeVar("T")

# What no computer counts to, and what NumPy and XLA have no type for.
_MAX_INT = 2**63
_MAX_FLOAT = 3.4e38


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """The numbers that a parameter takes: `Annotated[float, Range(minimum=0)]`.

  Attributes:
    minimum: smallest value, or None.
    above: bound that values must be larger than, or None.
    maximum: largest value, or None.
    below: bound that values must be smaller than, or None.
  """

  minimum: float | None = None
  above: float | None = None
  maximum: float | None = None
  below: float | None = None

  def __contains__(self, value: Any) -> bool:
    return bool(
      (self.minimum is None or value >= self.minimum)
      and (self.above is None or value > self.above)
      and (self.maximum is None or value <= self.maximum)
      and (self.below is None or value < self.below)
    )

  def __repr__(self) -> str:  # As `help` of a function shows it.
    bounds = (f"{k}={v}" for k, v in vars(self).items() if v is not None)
    return f"Range({', '.join(bounds)})"

  def __str__(self) -> str:
    if self.minimum is not None and self.maximum is not None:
      return f"{self.minimum:,} to {self.maximum:,}"
    return ", ".join(
      text
      for bound, text in (
        (self.minimum, f"{self.minimum} or more"),
        (self.above, f"more than {self.above}"),
        (self.maximum, f"up to {self.maximum}"),
        (self.below, f"less than {self.below}"),
      )
      if bound is not None
    )


Share = Annotated[float, Range(minimum=0, maximum=1)]
Rate = Annotated[float, Range(minimum=0, below=1)]
NotNegative = Annotated[float, Range(minimum=0)]
Positive = Annotated[float, Range(above=0)]
Count = Annotated[int, Range(minimum=1)]
# Filters of a resize, as Pillow calls them.
Interpolation = Literal[
  "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"
]


def build(
  section: str,
  function: Callable[..., T],
  values: Mapping[str, Any],
  *,
  fields_of: type | None = None,
  **given: Any,
) -> T:
  """Returns `function(**values, **given)` once `values` have been checked.

  Args:
    section: name of the section in messages: "config.model".
    function: the keyword arguments that it takes are the keys of the section.
    values: the section.
    fields_of: a dataclass whose fields `function` takes as its `**keywords`.
    **given: arguments that do not come from the config.

  Raises:
    InputError: for an unknown key, a missing one, a value of the wrong type or
      out of its range, or one that `function` refuses with a ValueError or
      OSError.
  """
  parameters = parameters_of(function)
  if fields_of is not None:
    parameters = parameters_of(fields_of, optional=True) | parameters
  checked = _check(section, values, _without(parameters, given))
  with reported_as(section):
    return function(**checked, **given)


def arguments(
  section: str,
  values: Mapping[str, Any],
  *functions: Callable[..., Any],
  given: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Returns the keyword arguments that a section holds for each function.

  Args:
    section: name of the section in messages: "config.optim".
    values: the section.
    *functions: their keyword arguments together are the keys of the section.
    given: names of arguments that do not come from the config.

  Raises:
    InputError: as in `build`.
  """
  each = [_without(parameters_of(function), given) for function in functions]
  together = {name: p for one in each for name, p in one.items()}
  checked = _check(section, values, together)
  return [{k: v for k, v in checked.items() if k in one} for one in each]


def check_fields(instance: Any) -> None:
  """Checks the fields of a dataclass, or of a linen module, as `build` does.

  Raises:
    ValueError: for a value of the wrong type or out of its range.
  """
  for name, parameter in parameters_of(type(instance)).items():
    value = getattr(instance, name)
    if wanted := _wanted(value, parameter.annotation):
      raise ValueError(f"{name} is {value!r:.200}: use {wanted}")


def parameters_of(
  function: Callable[..., Any], optional: bool = False
) -> dict[str, inspect.Parameter]:
  """Returns the keyword arguments that a function or a class takes, by name.

  Args:
    function: a function or a class; those of a linen module are its fields
      without linen's own.
    optional: whether all are to be optional.
  """
  linen_fields = ("parent", "name") if hasattr(function, "apply") else ()
  return {
    name: parameter.replace(default=None) if optional else parameter
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name not in linen_fields
  }


def _without(
  parameters: Mapping[str, inspect.Parameter], given: Any
) -> dict[str, inspect.Parameter]:
  return {k: p for k, p in parameters.items() if k not in given}


def _check(
  section: str,
  values: Mapping[str, Any],
  parameters: Mapping[str, inspect.Parameter],
) -> dict[str, Any]:
  """Returns the values of a section in the types of its parameters."""
  for key in values:
    if key not in parameters:
      raise InputError(
        f"{section}.{key} is unknown: {suggestion(key, parameters)}"
      )
  for key, parameter in parameters.items():
    if key not in values:
      if parameter.default is inspect.Parameter.empty:
        raise InputError(f"{section}.{key} is missing: add it to the config")
    elif wanted := _wanted(values[key], parameter.annotation):
      raise InputError(f"{section}.{key} is {values[key]!r:.200}: use {wanted}")
  return {k: _as_typed(v, parameters[k].annotation) for k, v in values.items()}


def _as_typed(value: Any, annotation: Any) -> Any:
  """Returns a value with floats for ints where a float is wanted.

  A large int overflows in JAX, which takes it for an int32.
  """
  if typing.get_origin(annotation) is Sequence:
    (item,) = typing.get_args(annotation)
    return tuple(_as_typed(each, item) for each in value)
  kinds = [kind for kind, _ in _options(annotation)]
  wants_float = float in kinds and int not in kinds and type(value) is int
  return float(value) if wants_float else value


def _wanted(value: Any, annotation: Any) -> str:
  """Returns what is wanted instead of a value; "" if it fits."""
  if annotation in (inspect.Parameter.empty, Any):
    return _sane(value)
  if typing.get_origin(annotation) is Sequence:
    (item,) = typing.get_args(annotation)
    fits = isinstance(value, (list, tuple))
    if fits and not any(_wanted(each, item) for each in value):
      return ""
    return _spell(annotation)
  options = _options(annotation)
  if any(_fits(value, kind, bounds) for kind, bounds in options):
    return _sane(value)
  # For a number of the right type, the range alone says what to use.
  typed = not any(_fits(value, kind, None) for kind, _ in options)
  return _spell(annotation, typed)


def _sane(value: Any) -> str:
  """Returns what is wanted instead of numbers that a network cannot use."""
  if isinstance(value, (list, tuple)):
    return next(filter(None, map(_sane, value)), "")
  if isinstance(value, int) and abs(value) >= _MAX_INT:
    return f"numbers below {_MAX_INT}"
  if isinstance(value, numbers.Real) and not abs(float(value)) <= _MAX_FLOAT:
    return "finite numbers, as float32 has them"
  return ""


def _fits(value: Any, kind: Any, bounds: Range | str | None) -> bool:
  if kind in (int, float):
    number = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, number) or isinstance(value, bool):
      return False  # To Python, a bool is an int.
    return not isinstance(bounds, Range) or value in bounds
  if kind is bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's, and NumPy's.
  if typing.get_origin(kind) is Sequence:
    return not _wanted(value, kind)
  return beartype.door.is_bearable(value, kind)


def _options(annotation: Any) -> list[tuple[Any, Range | str | None]]:
  """Returns the types that an annotation allows, and what it says of each."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return [o for arg in typing.get_args(annotation) for o in _options(arg)]
  if typing.get_origin(annotation) is Annotated:
    kind, *details = typing.get_args(annotation)
    bounds = next((d for d in details if isinstance(d, Range | str)), None)
    return [(kind, bounds)]
  return [(annotation, None)]


def _spell(annotation: Any, typed: bool = True) -> str:
  """Returns a type in words: "one of 'cosine', 'step'", "int or None"."""
  return " or ".join(_spell_option(*o, typed) for o in _options(annotation))


def _spell_option(kind: Any, bounds: Range | str | None, typed: bool) -> str:
  if isinstance(bounds, str):
    return bounds
  if bounds is not None:
    return f"{kind.__name__}, {bounds}" if typed else str(bounds)
  if kind is types.NoneType:
    return "None"
  if typing.get_origin(kind) is Literal:
    return "one of " + ", ".join(map(repr, typing.get_args(kind)))
  if typing.get_origin(kind) is Sequence:
    (item,) = typing.get_args(kind)
    return f"a tuple of {_spell(item)}"
  return kind.__name__ if isinstance(kind, type) else str(kind)


# Keys that hold text, and may be None or left out.
_TEXT = (
  *("data_dir", "init_from", "root", "path_column", "image_column"),
  *("label_column", "split_column", "label_separator", "classes_file"),
  *("config_name",),
)


def load_recipe(
  path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> "ml_collections.ConfigDict":
  """Returns the config that a file's `get_config()` makes.

  Args:
    path: a Python file. It is run: it is code, not data.
    overrides: changes as on the command line, "optim.learning_rate=0.05". A
      length given here, `num_steps` or `num_epochs`, replaces the file's; a
      `batch_size` is handed to `get_config`, if it takes one, for the rates
      that depend on it.

  Raises:
    InputError: if there is no such file, if it fails, or if it has no such key.
  """
  return override(_run(pathlib.Path(path), overrides), overrides)


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
