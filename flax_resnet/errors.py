"""What a wrong input raises, in one sentence: what, where, and what to do.

The ground floor: this module imports nothing of the package.
"""

from collections.abc import Iterable, Iterator
import contextlib
import difflib
from typing import TypeVar

T = TypeVar("T")


class InputError(Exception):
  """A wrong flag, key, path or file; commands print it and exit with 2."""


class RunError(Exception):
  """A run that cannot go on; commands print it and exit with 1."""


class WeightsError(ValueError):
  """Weights that cannot be read, or that are not those of the network."""


class ImageError(ValueError):
  """A file that is not an image, or a broken one."""


@contextlib.contextmanager
def reported_as(where: str) -> Iterator[None]:
  """Raises an InputError that begins with `where` for what a value led to.

  Args:
    where: the part of the input that is read in the `with` block: a section of
      the config, a flag.

  Raises:
    InputError: in the place of a ValueError or OSError.
  """
  try:
    yield
  except BrokenPipeError:
    raise  # Of whoever reads what is printed.
  except (ValueError, OSError) as error:
    raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def each_reported_as(where: str, items: Iterable[T]) -> Iterator[T]:
  """Yields `items`; what reading them raises is reported as `where`."""
  with reported_as(where):
    yield from items


def suggestion(
  name: str, known: Iterable[str], otherwise: str | None = None
) -> str:
  """Returns "did you mean 'x'?" of a known name that is close to another.

  Args:
    name: the name that is not known.
    known: the names that are.
    otherwise: advice if none is close; None (default) for "use a, b, c".
  """
  known = list(known)
  if close := difflib.get_close_matches(name, known, n=1):
    return f"did you mean {close[0]!r}?"
  return otherwise or f"use {listing(known, 40)}"


def listing(items: Iterable[str], limit: int = 5) -> str:
  """Returns "a, b, c" or, of more than `limit` items, "a, b and 3 more"."""
  items = list(items)
  rest = len(items) - limit
  return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")
