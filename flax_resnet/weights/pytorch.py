"""PyTorch's own files, as a pickle alone or a zip with one in it."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any
import warnings

import numpy as np

from flax_resnet.weights.state_dict import WeightsError

# Under what a training script stores its state_dict beside other things.
_NESTED = ("state_dict", "model", "net")


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the tensors of a file by name; no code in it is run.

  Raises:
    WeightsError: When it is not a state_dict, or torch is not installed.
  """
  torch = _torch(path)
  try:
    with warnings.catch_warnings(action="ignore"):
      # weights_only: tensors and plain containers, never code.
      found = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # It raises whatever a damaged pickle leads to.
    raise WeightsError(
      f"weight file {path} is not a PyTorch file of tensors alone: "
      f"{_reason(error)}"
    ) from error
  if isinstance(found, Mapping):
    for key in _NESTED:
      if isinstance(found.get(key), Mapping):
        found = found[key]
    if found and all(torch.is_tensor(value) for value in found.values()):
      return dict(found)
  raise WeightsError(f"weight file {path} holds no state_dict of tensors")


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors by name.

  Raises:
    WeightsError: When torch is not installed.
  """
  torch = _torch(path)
  torch.save(
    {name: torch.tensor(array) for name, array in tensors.items()}, path
  )


def _torch(path: pathlib.Path) -> Any:
  try:
    import torch  # pyright: ignore[reportMissingImports] - optional
  except ImportError as error:
    raise WeightsError(
      f"{path.suffix} files are PyTorch's: install torch to read or write "
      f"{path}, or use a .safetensors file"
    ) from error
  return torch


def _reason(error: Exception) -> str:
  """Says what is wrong; PyTorch would first advise to run the file's code."""
  text = str(error)
  if found := re.search(r"(?i)unsupported (?:global: )?GLOBAL (\S+)", text):
    return f"it names {found[1][:200]}, which is none"
  if found := re.search(r"WeightsUnpickler error:\s*(.+)", text):
    return found[1][:200]
  if text.startswith("Weights only load failed"):
    return "it holds something else"
  return next(iter(text[:200].splitlines()), type(error).__name__)
