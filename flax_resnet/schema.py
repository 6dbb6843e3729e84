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

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
import numbers
import re
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

from etils import epy

from flax_resnet.errors import InputError, reported_as, suggestion

with epy.lazy_imports():  # Slow to import, and "--help" needs neither.
  import beartype.door

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


@dataclasses.dataclass(frozen=True)
class Location:
  """The places that a parameter may name: `Annotated[str, Location()]`.

  Without a scheme, as `://` ends it, a text is a path, or what else it may be.

  Attributes:
    schemes: schemes of the URLs that it takes, such as "gs".
  """

  schemes: tuple[str, ...] = ()

  def __contains__(self, value: Any) -> bool:
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", str(value))
    return scheme is None or scheme[1] in self.schemes

  def __str__(self) -> str:
    urls = (f"{scheme}://" for scheme in self.schemes)
    return " or ".join(["a path of this machine", *urls])


@dataclasses.dataclass(frozen=True)
class Items:
  """The items of a sequence of one length: `Items(("height", "width"))`.

  Attributes:
    names: name of each.
  """

  names: tuple[str, ...]

  def __contains__(self, value: Any) -> bool:
    return len(value) == len(self.names)

  def __str__(self) -> str:
    return f"({', '.join(self.names)}) of such"


LocalPath = Annotated[str, Location()]
Share = Annotated[float, Range(minimum=0, maximum=1)]
Rate = Annotated[float, Range(minimum=0, below=1)]
NotNegative = Annotated[float, Range(minimum=0)]
Positive = Annotated[float, Range(above=0)]
Count = Annotated[int, Range(minimum=1)]
# Filters of a resize, as Pillow calls them.
Interpolation = Literal[
  "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"
]
# The square of it is `data.decoding.MAX_PIXELS`.
MAX_IMAGE_SIZE = 9_459
_Side = Annotated[int, Range(minimum=1, maximum=MAX_IMAGE_SIZE)]
# Height and width in pixels: one number if they are equal, or both.
ImageSize = _Side | Annotated[Sequence[_Side], Items(("height", "width"))]
# What an annotation says of a type.
_Bounds = Range | Location | Items | str | None


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


def height_and_width(size: ImageSize) -> tuple[int, int]:
  """Returns height and width in pixels of a size that gives one or both."""
  height, width = size if isinstance(size, Sequence) else (size, size)
  return height, width


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


def _fits(value: Any, kind: Any, bounds: _Bounds) -> bool:
  if kind in (int, float):
    number = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, number) or isinstance(value, bool):
      return False  # To Python, a bool is an int.
    return not isinstance(bounds, Range) or value in bounds
  if kind is bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's, and NumPy's.
  if typing.get_origin(kind) is Sequence:
    fits = not _wanted(value, kind)
    return fits and (not isinstance(bounds, Items) or value in bounds)
  if isinstance(bounds, Location):
    return isinstance(value, str) and value in bounds
  return beartype.door.is_bearable(value, kind)


def _options(annotation: Any) -> list[tuple[Any, _Bounds]]:
  """Returns the types that an annotation allows, and what it says of each."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return [o for arg in typing.get_args(annotation) for o in _options(arg)]
  if typing.get_origin(annotation) is Annotated:
    kind, *details = typing.get_args(annotation)
    known = (
      d for d in details if isinstance(d, Range | Location | Items | str)
    )
    return [(kind, next(known, None))]
  return [(annotation, None)]


def _spell(annotation: Any, typed: bool = True) -> str:
  """Returns a type in words: "one of 'cosine', 'step'", "int or None"."""
  return " or ".join(_spell_option(*o, typed) for o in _options(annotation))


def _spell_option(kind: Any, bounds: _Bounds, typed: bool) -> str:
  if isinstance(bounds, str | Items):
    return str(bounds)
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
