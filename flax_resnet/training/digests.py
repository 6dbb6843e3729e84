"""Whether a checkpoint is what was written.

Orbax's own formats notice a flipped bit in what describes arrays and not in
the arrays. So the digests of all files of the state lie beside them, before the
checkpoint appears under its name.
"""

import hashlib
import itertools
import json
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from flax_resnet.training.schema import InputError

NAME = "digests.json"
# Orbax says in it when a part is complete, after that.
_LATER = ("commit_success.txt", NAME)


class DigestingHandler(ocp.StandardCheckpointHandler):
  """Orbax's handler of arrays, which also writes the digests."""

  @classmethod
  def typestr(cls) -> str:
    """Stands in the checkpoint: others read it by Orbax's own handler."""
    return ocp.StandardCheckpointHandler.typestr()

  def finalize(self, directory: Any) -> None:
    """Is called by one host, when all have written and nothing is public."""
    super().finalize(directory)
    folder = pathlib.Path(directory)
    (folder / NAME).write_text(json.dumps(_digests(folder), indent=1))


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
    if not (state / NAME).exists():
      return None  # Of a run of before there were digests.
    written = json.loads((state / NAME).read_text())
    found = _digests(state)
  except (OSError, ValueError) as error:
    return " ".join(f"{type(error).__name__}: {error}".split())
  for name in sorted(written.keys() | found.keys()):
    if written.get(name) != found.get(name):
      how = "is missing" if name not in found else "is not as it was written"
      return f"state/{name} {how}"
  return None


def _newest_first(directory: pathlib.Path) -> list[pathlib.Path]:
  if not directory.is_dir():
    return []
  folders = [path for path in directory.iterdir() if path.name.isdecimal()]
  return sorted(folders, key=lambda path: int(path.name), reverse=True)


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    path.relative_to(folder).as_posix(): _digest(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in _LATER
  }


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _told(damaged: list[tuple[pathlib.Path, str]]) -> str:
  each = [f"{folder} ({what})" for folder, what in damaged]
  plural = "checkpoints are" if len(each) > 1 else "checkpoint is"
  return f"{plural} damaged: {', '.join(each)}"


def _free(path: pathlib.Path) -> pathlib.Path:
  names = (f"{path.name}-{number}" for number in itertools.count(2))
  while path.exists():
    path = path.with_name(next(names))
  return path
