"""The folder of a run, and the config that it belongs to."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
from typing import Any

from flax_resnet.training.schema import InputError, RunError
from flax_resnet.weights.documents import read_object


def check(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Makes sure that a run can live in `workdir`, without writing there.

  Raises:
    InputError: When it holds a run of another config, or cannot be written.
  """
  path = workdir / "config.json"
  try:
    if path.exists():
      _compare(path, read_object(path), _plain(config))
  except ValueError as error:
    raise InputError(
      f"{path} is not JSON ({error}): choose another --workdir"
    ) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  existing = next(
    p for p in (workdir, *workdir.absolute().parents) if p.exists()
  )
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise InputError(
      f"workdir {workdir} cannot be written, because {existing} "
      + ("is not writable" if existing.is_dir() else "is not a folder")
      + ": choose another --workdir"
    )


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
  """Tells in a sentence why a file of a run could not be written.

  Raises:
    RunError: In the place of an OSError.
  """
  try:
    yield
  except BrokenPipeError:
    raise  # Of whoever reads what is printed.
  except OSError as error:
    raise RunError(
      f"workdir {workdir} cannot be written: {error}; its complete checkpoints "
      "stay as they are: once it can, the same command continues"
    ) from error


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the config of the run that lives in `workdir`.

  Raises:
    InputError: When none does.
  """
  path = workdir / "config.json"
  try:
    if not path.is_file():
      raise InputError(f"{workdir} is not a workdir: it has no config.json")
    return read_object(path)
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error})") from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes values as indented JSON; see `to_json`."""
  write_text(path, to_json(values, indent=2) + "\n")


def to_json(values: Any, indent: int | None = None) -> str:
  """Returns values as JSON, with null for numbers that are not finite.

  Python would write NaN and Infinity, which are not JSON: browsers, and what
  reads JSON by its letter, refuse the whole file for one such number.
  """
  return json.dumps(_finite(values), indent=indent, allow_nan=False)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file or none."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  os.replace(partial, path)


def _compare(path: pathlib.Path, old: Any, new: Any) -> None:
  old, new = _flat(old), _flat(new)
  differ = [
    f"{key:.60} (there {_show(old, key):.60}, now {_show(new, key):.60})"
    for key in sorted(old.keys() | new.keys())
    if _show(old, key) != _show(new, key)
  ]
  if differ:
    more = f" and {len(differ) - 10} more keys" if len(differ) > 10 else ""
    raise InputError(
      f"workdir {path.parent} holds a run of another config, which differs in "
      f"{', '.join(differ[:10])}{more}: choose another --workdir, or the same "
      "config to continue that run"
    )


def _finite(values: Any) -> Any:
  if isinstance(values, float) and not math.isfinite(values):
    return None
  if isinstance(values, Mapping):
    return {key: _finite(value) for key, value in values.items()}
  if isinstance(values, (list, tuple)):
    return [_finite(value) for value in values]
  return values


def _plain(values: Any) -> Any:
  return json.loads(json.dumps(values))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(values, dict):
    return {prefix.removesuffix("."): values}
  return {
    name: leaf
    for key, value in values.items()
    for name, leaf in _flat(value, f"{prefix}{key}.").items()
  }


def _show(values: dict[str, Any], key: str) -> str:
  return json.dumps(values[key]) if key in values else "absent"
