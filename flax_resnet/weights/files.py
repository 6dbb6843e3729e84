"""Weight files: .safetensors, PyTorch's, and Flax checkpoints."""

import argparse
from collections.abc import Mapping
import dataclasses
import importlib.util
import math
import pathlib
import re
import sys
from typing import Any
import warnings

from etils import epath, epy
import jax
import numpy as np
import safetensors
import safetensors.numpy

from flax_resnet import storage
from flax_resnet.errors import WeightsError
from flax_resnet.models.variables import (
  mismatch,
  named_leaves,
  unstack,
  Variables,
)
from flax_resnet.weights.preprocessing import Preprocessing

with epy.lazy_imports():  # Slow to import, and not every file needs them.
  import orbax.checkpoint as ocp
  import torch  # pyright: ignore[reportMissingImports] - optional

PYTORCH = (".pth", ".pt", ".th", ".bin", ".ckpt", ".pth.tar")
SHARDED = ".safetensors.index.json"
_ENDINGS = f"use .safetensors or {', '.join(PYTORCH)}"
# Keys under which training scripts store the state_dict beside other things,
# and its moving average: of timm, of torchvision, of DINO.
_NESTED = ("state_dict", "model", "net", "student")
_AVERAGES = ("state_dict_ema", "model_ema", "teacher")
# Arrays of equal numbers shrink on disk, but hardly more than this. Little is
# read in any case.
_MAX_COMPRESSION = 1_000
_MIN_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights before they are read, with what is known of them.

  Attributes:
    path: weight file, checkpoint or workdir.
    model: name of the network, for `create_model`; None if unknown.
    fields: fields of the network that differ from those of the named one.
    preprocessing: preprocessing of images; None if unknown.
    class_names: names of the classes by label; empty if unknown.
    multi_label: whether an image may have several of the classes.
    of_run: whether they are those of a run of this package.
    tag: name under which they are published; "" if unknown.
  """

  path: pathlib.Path
  model: str | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  preprocessing: Preprocessing | None = None
  class_names: tuple[str, ...] = ()
  multi_label: bool = False
  of_run: bool = False
  tag: str = ""


def read(path: str | pathlib.Path, *, ema: bool = True) -> dict[str, Any]:
  """Returns the arrays of a weight file or checkpoint by name.

  No code in a file is run. A line on stderr says which part of a file was
  taken, if it holds several.

  Args:
    path: .safetensors file; .safetensors.index.json of files that hold a part
      each, beside it; .pth, .pth.tar, .pt, .th, .bin or .ckpt file of PyTorch,
      for which torch has to be installed; or a folder, see `read_checkpoint`,
      whose arrays are named "params/stem/conv/kernel".
    ema: whether to take the moving average of a training run where there is
      one; default True.

  Raises:
    WeightsError: if it is none of these, or damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return named_leaves(read_checkpoint(path, ema=ema))
  if not path.is_file():
    raise WeightsError(f"there is no weight file {path}")
  name = path.name.lower()
  if name.endswith(SHARDED):
    return _read_shards(path)
  if name.endswith(".safetensors"):
    return _read_safetensors(path)
  if name.endswith(PYTORCH):
    return _state_dict(_read_pytorch(path), path, ema)
  raise WeightsError(f"weight file {path} has an unknown ending: {_ENDINGS}")


def say(line: str) -> None:
  """Prints what was done to weights; stdout is what a command gives."""
  print(line, file=sys.stderr)


def read_checkpoint(path: str | pathlib.Path, *, ema: bool = True) -> Variables:
  """Returns the variables in a folder, in arrays of NumPy.

  Args:
    path: folder that `write_checkpoint` wrote, the workdir of a run (for its
      newest sound checkpoint), or one of the checkpoints in it.
    ema: whether to take the average of a run with `ema_decay`; default True.

  Returns:
    {"params": ..., "batch_stats": ...} of single blocks, also where a network
    with `scan=True` was saved.

  Raises:
    WeightsError: if it is none of these, or damaged.
  """
  folder = pathlib.Path(path).absolute()
  if (folder / "checkpoints").is_dir():
    folder = find_checkpoint(folder)
  if (folder / "state").is_dir():
    folder = folder / "state"
  if difference := storage.difference(folder):
    raise WeightsError(
      f"checkpoint {folder} is damaged: {difference}: use another one"
    )
  try:
    state = _restore(folder)
    # The average is what the run evaluates with.
    variables = (ema and state.get("average")) or state
    return unstack(
      {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats") or {},  # No BatchNorm.
      }
    )
  except Exception as error:  # Orbax raises whatever it meets, and Exception.
    raise WeightsError(
      f"folder {path} is not a Flax checkpoint: {_first_line(error)}"
    ) from error


def write(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file, or one of PyTorch if torch is installed.

  Raises:
    WeightsError: for another ending.
  """
  path = pathlib.Path(path)
  if not path.name.lower().endswith((".safetensors", *PYTORCH)):
    raise WeightsError(f"weight file {path} has an unknown ending: {_ENDINGS}")
  # safetensors writes the numbers of a transposed view in another order.
  arrays = {name: np.asarray(a, order="C") for name, a in tensors.items()}
  if path.name.lower().endswith(PYTORCH):
    _check_torch(path)
  with storage.replacing(path) as partial:
    partial.touch()
    mode = partial.stat().st_mode
    if path.suffix.lower() == ".safetensors":
      safetensors.numpy.save_file(arrays, partial)
    else:
      torch.save({k: torch.tensor(v) for k, v in arrays.items()}, partial)
    partial.chmod(mode)  # safetensors lets only their owner read its files.


def write_checkpoint(path: str | pathlib.Path, variables: Variables) -> None:
  """Writes variables as an Orbax checkpoint, a new folder.

  Raises:
    InputError: for a path at which Orbax cannot write one.
  """
  storage.check_can_hold_checkpoint(pathlib.Path(path))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(pathlib.Path(path).absolute(), variables)


def find_checkpoint(
  workdir: pathlib.Path, which: str = "newest"
) -> pathlib.Path:
  """Returns the folder of a checkpoint of a run.

  Args:
    workdir: folder of the run.
    which: "newest" (default) for the newest sound one, with a warning of newer
      ones that are damaged; "best" for the one with the best `storage.score`;
      or a step, "400".

  Raises:
    WeightsError: if there is none.
  """
  directory = workdir / "checkpoints"
  steps = storage.checkpoint_steps(directory)
  if not steps:
    raise WeightsError(f"workdir {workdir} has no checkpoint yet")
  if which == "newest":
    folder, damaged = storage.newest_sound_checkpoint(directory)
    if folder is None:
      raise WeightsError(
        f"{storage.describe_damage(damaged)}, and there is no other"
      )
    if damaged:
      warnings.warn(
        f"{storage.describe_damage(damaged)}: that of step {folder.name} is "
        "used",
        stacklevel=2,
      )
    return folder
  if which == "best":
    scores = {
      step: storage.score(read_results(directory / str(step))) for step in steps
    }
    best = max(steps, key=lambda step: scores[step])
    if scores[best] >= 0:
      return directory / str(best)
    raise WeightsError(f"no checkpoint in {directory} was evaluated")
  if which not in map(str, steps):
    there = ", ".join(map(str, sorted(steps)))
    raise WeightsError(
      f"there is no checkpoint {which!r} in {directory}: use best, or one of "
      f"{there}"
    )
  return directory / which


def read_results(checkpoint: pathlib.Path) -> dict[str, Any]:
  """Returns the metrics of a checkpoint of a run with its step; {} if none."""
  try:
    row = storage.read_json(checkpoint / "metrics" / "metrics")
  except (OSError, ValueError):
    return {}
  name = checkpoint.name
  return {**row, "step": int(name)} if name.isdecimal() else row


def is_multi_label(checkpoint: pathlib.Path) -> bool:
  """Whether a run was of images that may have several labels."""
  about = storage.read_json(checkpoint / "about" / "metadata")
  return about.get("multi_label") is True


def read_about(
  checkpoint: pathlib.Path,
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Returns the config of a run, and its class names by label.

  Args:
    checkpoint: folder of a checkpoint of the run.

  Raises:
    WeightsError: if it is none, or a damaged one.
  """
  path = checkpoint / "about" / "metadata"
  try:
    about = storage.read_json(path)
    config, names = about["config"], about["class_names"]
  except (OSError, ValueError, KeyError) as error:
    raise WeightsError(f"{path} is not that of a run: {error!r}") from error
  if not isinstance(config, dict):
    raise WeightsError(f"{path} is not that of a run: config is no object")
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise WeightsError(f"{path} is not that of a run: class_names is no list")
  return config, tuple(names)


def read_devices(checkpoint: pathlib.Path) -> str | None:
  """Returns "8 x NVIDIA H100, JAX 0.10.2": what a run was trained on.

  None if the checkpoint does not say it, as those of before 0.2.0.
  """
  try:
    about = storage.read_json(checkpoint / "about" / "metadata")
    return f"{about['devices']}, JAX {about['jax']}"
  except (OSError, ValueError, KeyError):
    return None


def _restore(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the tree of arrays that Orbax has saved in a folder."""
  # The handler, as a Checkpointer warns of a file that a run's state lacks.
  handler = ocp.StandardCheckpointHandler()
  tree = handler.metadata(epath.Path(folder)).tree
  needed = sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )
  on_disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  if needed > _MIN_LIMIT + _MAX_COMPRESSION * on_disk:
    raise ValueError(f"{on_disk:,} bytes cannot hold arrays of {needed:,}")
  # On this process's own device, wherever it was written.
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
    lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), tree
  )
  restored = handler.restore(
    epath.Path(folder), args=ocp.args.StandardRestore(target)
  )
  handler.close()
  return jax.tree.map(np.asarray, restored)


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
  try:
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise WeightsError(
      f"weight file {path} is not a whole .safetensors file: "
      f"{_first_line(error)}"
    ) from error


def shards(index: pathlib.Path) -> list[str]:
  """Returns the names of the files that an index of shards lists.

  Raises:
    WeightsError: for an index that is none.
  """
  return sorted(set(_weight_map(index).values()))


def _weight_map(index: pathlib.Path) -> dict[str, str]:
  """Returns the names of the shards by those of the tensors in them."""
  try:
    found = storage.read_json(index).get("weight_map")
  except (OSError, ValueError) as error:
    raise WeightsError(f"{index} is not JSON: {_first_line(error)}") from error
  if (
    not isinstance(found, dict)
    or not found
    or not all(
      isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file)
      for file in found.values()
    )
  ):
    raise WeightsError(
      f"{index} is no index of shards: it has no weight_map of the tensors and "
      "their .safetensors files"
    )
  return found


def _read_shards(index: pathlib.Path) -> dict[str, Any]:
  expected = _weight_map(index)
  tensors, found = {}, {}
  for shard in shards(index):
    path = index.parent / shard
    if not path.is_file():
      raise WeightsError(f"{index} lists {shard}, which is not beside it")
    part = _read_safetensors(path)
    tensors |= part
    found |= dict.fromkeys(part, shard)
  if difference := mismatch(expected, found):
    raise WeightsError(
      f"{index} does not list what its shards hold: {difference}"
    )
  return tensors


def _read_pytorch(path: pathlib.Path) -> Any:
  """Returns what torch.save has written: tensors, numbers, text, containers."""
  _check_torch(path)
  try:
    with (
      warnings.catch_warnings(action="ignore"),
      # The flags of a training script: names and values, nothing else.
      torch.serialization.safe_globals([argparse.Namespace]),
    ):
      # weights_only: tensors and plain containers, never code.
      return torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # It raises whatever a damaged pickle leads to.
    raise WeightsError(
      f"weight file {path} is not a PyTorch file of tensors alone: "
      f"{_reason(error)}"
    ) from error


def _state_dict(values: Any, path: pathlib.Path, ema: bool) -> dict[str, Any]:
  """Returns the tensors by name among what a training script has saved."""
  taken = []
  while isinstance(values, Mapping):
    nested = {k: v for k, v in values.items() if isinstance(v, Mapping) and v}
    raw = [key for key in _NESTED if key in nested]
    averages = [key for key in _AVERAGES if key in nested]
    keys = averages + raw if ema else raw + averages
    if not keys:
      break
    if raw and averages:
      taken.append(keys[0])
    values = values[keys[0]]
  if (
    not isinstance(values, Mapping)
    or not values
    or not all(map(torch.is_tensor, values.values()))
  ):
    raise WeightsError(f"weight file {path} holds no state_dict of tensors")
  for key in taken:
    what = "the moving average" if key in _AVERAGES else "and not the average"
    say(f"{path}: the weights are those of {key!r}, {what}")
  return dict(values)


def _check_torch(path: pathlib.Path) -> None:
  if importlib.util.find_spec("torch") is None:
    raise WeightsError(
      f"{path.suffix} files are PyTorch's: install torch to read or write "
      f"{path}, or use a .safetensors file"
    )


def _reason(error: Exception) -> str:
  """Returns why a pickle is refused, without the advice to run its code."""
  text = str(error)
  if match := re.search(r"(?i)unsupported (?:global: )?GLOBAL (\S+)", text):
    return f"it names {match[1][:200]}, which is none"
  if match := re.search(r"WeightsUnpickler error:\s*(.+)", text):
    return match[1][:200]
  if text.startswith("Weights only load failed"):
    return "it holds something else"
  return _first_line(error)


def _first_line(error: Exception) -> str:
  return next(iter(str(error)[:300].splitlines()), type(error).__name__)
