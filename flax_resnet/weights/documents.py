"""JSON that others have written: configs of runs and of hub repositories."""

import json
import pathlib
from typing import Any

# More than any config or list of class names is.
MAX_BYTES = 2**26
MAX_DEPTH = 32  # Likewise: brackets within each other.
_DEEP = "too many brackets within each other"


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object that a file holds.

  Raises:
    ValueError: When it holds anything else.
    OSError: When it cannot be read.
  """
  with path.open("rb") as file:
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise ValueError(f"more than {MAX_BYTES:,} bytes")
  try:
    found = json.loads(data)
  except RecursionError as error:
    raise ValueError(_DEEP) from error
  if not isinstance(found, dict):
    raise ValueError("something else than an object")
  if _is_deep(found, MAX_DEPTH):
    raise ValueError(_DEEP)
  return found


def _is_deep(value: Any, levels: int) -> bool:
  if not isinstance(value, (dict, list)):
    return False
  inside = value.values() if isinstance(value, dict) else value
  return levels == 0 or any(_is_deep(each, levels - 1) for each in inside)
