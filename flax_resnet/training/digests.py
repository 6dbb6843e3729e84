"""Checkpoints of a run with digests, and what is done with a damaged one.

The digests, see `weights.integrity`, lie beside the files of the state before
the checkpoint appears under its name.
"""

import itertools
import json
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from flax_resnet.training.schema import InputError
from flax_resnet.weights import integrity


class DigestingHandler(ocp.StandardCheckpointHandler):
  """Orbax's handler of arrays, which also writes the digests."""

  @classmethod
  def typestr(cls) -> str:
    """Stands in the checkpoint: others read it by Orbax's own handler."""
    return ocp.StandardCheckpointHandler.typestr()

  def finalize(self, directory: Any) -> None:
    """Is called by one host, when all have written and nothing is public."""
    super().finalize(directory)
    integrity.write(pathlib.Path(directory))


def set_damaged_aside(directory: pathlib.Path) -> str:
  """Renames the checkpoints after the last sound one, and says so in a line.

  Args:
    directory: Of a run's checkpoints; if all are damaged it stays as it is.

  Raises:
    InputError: When there are checkpoints and none is sound.
  """
  damaged = []
  for folder in _newest_first(directory):
    if (what := damage(folder)) is None:
      break
    damaged.append((folder, what))
  else:
    if damaged:
      raise InputError(f"{_told(damaged)}, and there is no other to go on with")
  for folder, _ in damaged:
    folder.rename(_free(directory / f"damaged-{folder.name}"))
  if not damaged:
    return ""
  return f"{_told(damaged)}: set aside as damaged-…, which can be deleted"


def damage(folder: pathlib.Path) -> str | None:
  """Says what of a checkpoint is not what was written; None if nothing."""
  state = folder / "state"
  if not (state / "manifest.ocdbt").exists():
    return "state/manifest.ocdbt is missing"
  try:
    for path in (folder / "metrics" / "metrics", folder / "about" / "metadata"):
      if path.exists():
        json.loads(path.read_text())
  except (OSError, ValueError) as error:
    return " ".join(f"{type(error).__name__}: {error}".split())
  what = integrity.difference(state)
  return what and f"state/{what}"


def _newest_first(directory: pathlib.Path) -> list[pathlib.Path]:
  if not directory.is_dir():
    return []
  folders = [path for path in directory.iterdir() if path.name.isdecimal()]
  return sorted(folders, key=lambda path: int(path.name), reverse=True)


def _told(damaged: list[tuple[pathlib.Path, str]]) -> str:
  each = [f"{folder} ({what})" for folder, what in damaged]
  plural = "checkpoints are" if len(each) > 1 else "checkpoint is"
  return f"{plural} damaged: {', '.join(each)}"


def _free(path: pathlib.Path) -> pathlib.Path:
  names = (f"{path.name}-{number}" for number in itertools.count(2))
  while path.exists():
    path = path.with_name(next(names))
  return path
