"""JSON that others have written: configs of runs and of hub repositories."""

import json
import pathlib
from typing import Any

# More than any config or list of class names is.
MAX_BYTES = 2**26


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
    raise ValueError("too many brackets within each other") from error
  if not isinstance(found, dict):
    raise ValueError("something else than an object")
  return found
