"""The schema of a recipe: its sections are the arguments of functions.

`create_model(**config.model)`: the signature is the schema, so a misspelt key,
a missing one or a value of the wrong type is told before anything is built.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import inspect
import types
import typing
from typing import Any, TypeVar

from beartype import BeartypeConf
from beartype.door import is_bearable

T = TypeVar("T")

# An int is a float, as in PEP 484.
_TYPES = BeartypeConf(is_pep484_tower=True)


# What no computer counts to, and what NumPy and XLA have no type for.
_MAX_INT = 2**63
_MAX_FLOAT = 3.4e38


class InputError(Exception):
  """A wrong input, told in one sentence; commands print it and exit with 2."""


class RunError(Exception):
  """A run that cannot go on, told in one sentence; commands exit with 1."""


@contextlib.contextmanager
def wrong_input(where: str) -> Iterator[None]:
  """Tells errors of the user's values as an InputError that says `where`."""
  try:
    yield
  except BrokenPipeError:
    raise  # Of whoever reads what is printed.
  except (ValueError, OSError) as error:
    raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def told(where: str, items: Iterator[T]) -> Iterator[T]:
  """Yields items; errors on the way to them as in `wrong_input`."""
  with wrong_input(where):
    yield from items


def build(
  section: str,
  function: Callable[..., T],
  values: Mapping[str, Any],
  **given: Any,
) -> T:
  """Returns `function(**values, **given)` after checking `values`.

  Args:
    section: Of the config, for the message: "config.model".
    function: Its keyword arguments are the keys of the section.
    values: The section.
    **given: Arguments that do not come from the config.

  Raises:
    InputError: For an unknown key, a missing one, a value of the wrong type,
      or one that `function` refuses with a ValueError or OSError.
  """
  check(section, function, values, given)
  with wrong_input(section):
    return function(**_as_typed(function, values), **given)


def check(
  section: str,
  function: Callable,
  values: Mapping[str, Any],
  given: Mapping[str, Any],
) -> None:
  """Raises InputError unless `values` fit the signature of `function`."""
  parameters = {
    name: parameter
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in given
  }
  for key in values:
    if key not in parameters:
      raise InputError(
        f"{section}.{key} is unknown: {nearest(key, parameters)}"
      )
  for key, parameter in parameters.items():
    if key not in values:
      if parameter.default is inspect.Parameter.empty:
        raise InputError(f"{section}.{key} is missing: add it to the config")
    elif wanted := _wanted(values[key], parameter.annotation):
      raise InputError(f"{section}.{key} is {values[key]!r:.200}: use {wanted}")


def _as_typed(function: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values with floats for ints where a float is wanted.

  A large int overflows in JAX, which takes it for an int32.
  """
  parameters = inspect.signature(function).parameters

  def typed(value, annotation):
    if typing.get_origin(annotation) is Sequence:
      (item,) = typing.get_args(annotation)
      return tuple(typed(each, item) for each in value)
    options = _options(annotation)
    wants = float in options and int not in options and type(value) is int
    return float(value) if wants else value

  return {k: typed(v, parameters[k].annotation) for k, v in values.items()}


def nearest(key: str, known: Iterable[str]) -> str:
  """Returns "did you mean 'x'?", or the list of what is known."""
  close = difflib.get_close_matches(key, list(known), n=1)
  return f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}"


def _wanted(value: Any, annotation: Any) -> str:
  """Says what is wanted instead of a value; nothing if it fits."""
  if not _fits(value, annotation):
    return _spell(annotation)
  if isinstance(value, (list, tuple)):
    return next(filter(None, (_wanted(each, Any) for each in value)), "")
  if isinstance(value, float) and not abs(value) <= _MAX_FLOAT:
    return "finite numbers, as float32 has them"
  if isinstance(value, int) and abs(value) >= _MAX_INT:
    return f"numbers below {_MAX_INT}"
  return ""


def _fits(value: Any, annotation: Any) -> bool:
  if annotation in (inspect.Parameter.empty, Any):
    return True
  if isinstance(value, bool) and {int, float} & set(_options(annotation)):
    return False  # To Python it is an int.
  if typing.get_origin(annotation) is Sequence:
    # beartype looks at one item of many, at random.
    (item,) = typing.get_args(annotation)
    return isinstance(value, (list, tuple)) and all(
      _fits(each, item) for each in value
    )
  return is_bearable(value, annotation, conf=_TYPES)


def _options(annotation: Any) -> tuple[Any, ...]:
  """Returns the types that a union is of, or the one type."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def _spell(annotation: Any) -> str:
  """Says a type in words: "one of 'cosine', 'step'", "int or None"."""
  if len(options := _options(annotation)) > 1:
    return " or ".join(map(_spell, options))
  if annotation is types.NoneType:
    return "None"
  if typing.get_origin(annotation) is typing.Literal:
    return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
  if isinstance(annotation, type) and not typing.get_args(annotation):
    return annotation.__name__
  if typing.get_origin(annotation) is Sequence:
    (item,) = typing.get_args(annotation)
    return f"a tuple of {_spell(item)}"
  return str(annotation)
