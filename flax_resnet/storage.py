"""Files that are whole or not there at all: writing, reading back, checking."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any

from flax_resnet.errors import InputError, listing

# More bytes, and more brackets within each other, than any config, list of
# class names or list of digests has.
MAX_JSON_BYTES = 2**26
MAX_JSON_DEPTH = 32
DIGESTS = "digests.json"
# Orbax writes it when a part of a checkpoint is complete: after the digests.
_COMPLETE = "commit_success.txt"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which then takes the place of `path`.

  What is written has the ending of `path`; if the block raises, it is removed,
  and `path` stays as it was.
  """
  partial = path.with_name(f"{path.stem}.partial{path.suffix}")
  try:
    yield partial
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
  os.replace(partial, path)


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes values as indented JSON; see `to_json`."""
  with replacing(path) as partial:
    partial.write_text(to_json(values, indent=2) + "\n")


def to_json(values: Any, indent: int | None = None) -> str:
  """Returns values as JSON, with null for numbers that are not finite.

  Python would write NaN and Infinity, which are not JSON: browsers, and what
  reads JSON by its letter, refuse the whole file for one such number.
  """
  return json.dumps(_finite(values), indent=indent, allow_nan=False)


def plain(values: Any) -> Any:
  """Returns values in Python's own types, as JSON has them; NumPy's too."""
  if isinstance(values, Mapping):
    return {key: plain(value) for key, value in values.items()}
  if isinstance(values, (list, tuple)):
    return type(values)(plain(value) for value in values)
  # By its name: NumPy is slow to import, and most that use this need it not.
  is_numpys = type(values).__module__ == "numpy" and not values.ndim
  return values.item() if is_numpys else values


def _finite(values: Any) -> Any:
  if isinstance(values, float) and not math.isfinite(values):
    return None
  if isinstance(values, Mapping):
    return {key: _finite(value) for key, value in values.items()}
  if isinstance(values, (list, tuple)):
    return [_finite(value) for value in values]
  return values


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object in a file that anyone may have written.

  Raises:
    ValueError: for anything else than one object of a sane size and depth.
    OSError: if the file cannot be read.
  """
  with path.open("rb") as file:
    data = file.read(MAX_JSON_BYTES + 1)
  if len(data) > MAX_JSON_BYTES:
    raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
  try:
    values = json.loads(data)
  except RecursionError as error:
    raise ValueError("too many brackets within each other") from error
  if not isinstance(values, dict):
    raise ValueError("something else than an object")
  if _deeper_than(values, MAX_JSON_DEPTH):
    raise ValueError("too many brackets within each other")
  return values


def _deeper_than(value: Any, levels: int) -> bool:
  if not isinstance(value, (dict, list)):
    return False
  inside = value.values() if isinstance(value, dict) else value
  return levels == 0 or any(_deeper_than(each, levels - 1) for each in inside)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the config of the run in `workdir`.

  Raises:
    InputError: if there is no run, or its config.json cannot be read.
  """
  path = workdir / "config.json"
  try:
    if not path.is_file():
      raise InputError(f"{workdir} is not a workdir: it has no config.json")
    return read_json(path)
  except ValueError as error:
    raise InputError(
      f"{path} is not JSON ({error}): choose another --workdir"
    ) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def score(row: Mapping[str, Any]) -> float:
  """Returns by what the evaluation of a row is compared with others.

  It is "val/map" where images have several labels, else "val/top1"; -1 for none
  that is a finite number.
  """
  value = row.get("val/map", row.get("val/top1"))
  return value if isinstance(value, float) and math.isfinite(value) else -1.0


def checkpoint_steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints in a folder, newest first.

  Orbax gives a checkpoint its name, the step, once it is complete.
  """
  if not directory.is_dir():
    return []
  names = (path.name for path in directory.iterdir())
  return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def newest_sound_checkpoint(
  directory: pathlib.Path,
) -> tuple[pathlib.Path | None, dict[pathlib.Path, str]]:
  """Returns the newest sound checkpoint, and how newer ones are damaged.

  Args:
    directory: folder of the checkpoints of a run.
  """
  damaged = {}
  for step in checkpoint_steps(directory):
    folder = directory / str(step)
    if (found := damage(folder)) is None:
      return folder, damaged
    damaged[folder] = found
  return None, damaged


def damage(folder: pathlib.Path) -> str | None:
  """Returns how a checkpoint differs from what was written; None if nowhere."""
  state = folder / "state"
  if not (state / DIGESTS).exists():
    return f"state/{DIGESTS} is missing"
  try:
    for path in (folder / "metrics" / "metrics", folder / "about" / "metadata"):
      if path.exists():
        read_json(path)
  except (OSError, ValueError) as error:
    return " ".join(f"{type(error).__name__}: {error}".split())
  found = difference(state)
  return found and f"state/{found}"


def describe_damage(damaged: Mapping[pathlib.Path, str]) -> str:
  """Returns "checkpoint is damaged: …", as `newest_sound_checkpoint` found."""
  verb = "checkpoint is" if len(damaged) == 1 else "checkpoints are"
  each = (f"{folder} ({how})" for folder, how in damaged.items())
  return f"{verb} damaged: {listing(each, 10)}"


def check_can_hold_checkpoint(folder: pathlib.Path) -> None:
  """Raises InputError for a path at which Orbax writes what nobody can read.

  It takes a path for a pattern where it merges what processes have written, and
  TensorStore takes it for a URL, in UTF-8.
  """
  path = folder.absolute()
  if re.search(r"[*?\[\\\udc80-\udcff]|/\w+:/", f"{path}/"):
    raise InputError(
      f"no checkpoint can be written to {path}: Orbax takes *, ?, [ and \\ for "
      "a pattern, a folder such as gs: for a bucket, and needs UTF-8: choose "
      "another folder"
    )


def write_digests(folder: pathlib.Path) -> None:
  """Writes the SHA-256 of every file in a folder and below into it.

  Orbax's own formats notice a flipped bit in what describes arrays and not in
  the arrays.
  """
  (folder / DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def missing_file(folder: pathlib.Path) -> str | None:
  """Returns the first file of `write_digests` that is gone; None if none is."""
  names = read_json(folder / DIGESTS)
  return next((name for name in names if not (folder / name).is_file()), None)


def difference(folder: pathlib.Path) -> str | None:
  """Returns which file of a folder is not as it was written; None if all are.

  A folder without digests, which others than this package have written, is
  taken as it is.
  """
  if not (folder / DIGESTS).exists():
    return None
  try:
    written = read_json(folder / DIGESTS)
    found = _digests(folder)
  except (OSError, ValueError) as error:
    return f"{DIGESTS}: {' '.join(str(error).split())}"
  for name in sorted(written.keys() | found.keys()):
    if written.get(name) != found.get(name):
      how = "is missing" if name not in found else "is not as it was written"
      return f"{name} {how}"
  return None


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    path.relative_to(folder).as_posix(): _digest(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in (_COMPLETE, DIGESTS)
  }


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
