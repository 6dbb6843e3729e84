"""Weight files: .safetensors, PyTorch's .pth, and Flax checkpoints."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

import jax
import numpy as np

from flax_resnet.weights import integrity, pytorch
from flax_resnet.weights.documents import read_object
from flax_resnet.weights.state_dict import Variables, WeightsError

PYTORCH = (".pth", ".pt", ".th", ".bin")
# Arrays shrink on disk, where they are equal numbers, but hardly as much.
_MOST_SHRUNK = 1_000
_ROOM = 2**30  # Bytes that are read however little is on disk.


def read(path: str | pathlib.Path) -> dict[str, Any]:
  """Returns the tensors of a weight file by name; no code in it is run.

  Args:
    path: A .safetensors file, or a .pth, .pt, .th or .bin of PyTorch, for which
      torch has to be installed.

  Raises:
    WeightsError: When it is not such a file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"there is no weight file {path}")
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  if path.suffix in PYTORCH:
    return pytorch.read(path)
  raise WeightsError(
    f"weight file {path} has an unknown ending: use .safetensors or "
    f"{', '.join(PYTORCH)}"
  )


def write(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file, or a .pth if torch is installed.

  Raises:
    WeightsError: For another ending.
  """
  path = pathlib.Path(path)
  if path.suffix == ".safetensors":
    from safetensors.numpy import save_file

    save_file(dict(tensors), path)
  elif path.suffix in PYTORCH:
    pytorch.write(path, tensors)
  else:
    raise WeightsError(
      f"weight file {path} has an unknown ending: use .safetensors or "
      f"{', '.join(PYTORCH)}"
    )


def write_checkpoint(path: str | pathlib.Path, variables: Variables) -> None:
  """Writes variables as an Orbax checkpoint, a new folder."""
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(pathlib.Path(path).absolute(), variables)


def read_checkpoint(path: str | pathlib.Path) -> Variables:
  """Returns the variables of a folder.

  Args:
    path: What `write_checkpoint` wrote, the workdir of a run (its latest
      checkpoint), or one of the checkpoints in it. Of a run with `ema_decay` it
      is the average.

  Raises:
    WeightsError: When it is none of these, or damaged.
  """
  from etils import epath
  import orbax.checkpoint as ocp

  folder = pathlib.Path(path).absolute()
  if (folder / "checkpoints").is_dir():
    folder = _latest(folder)
  if (folder / "state").is_dir():
    folder = folder / "state"
  if what := integrity.difference(folder):
    raise WeightsError(
      f"checkpoint {folder} is damaged: {what}: use another one"
    )
  try:
    # The handler, as a Checkpointer warns of a file that a run's state lacks.
    handler = ocp.StandardCheckpointHandler()
    tree = handler.metadata(epath.Path(folder)).tree
    _check_size(folder, tree)
    # On this process's own device, wherever it was written.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), tree
    )
    state = handler.restore(
      epath.Path(folder), args=ocp.args.StandardRestore(target)
    )
    handler.close()
    # Those that the run evaluates with.
    variables = state.get("average") or state
    # Empty without BatchNorm.
    stats = variables.get("batch_stats") or {}
    return {"params": variables["params"], "batch_stats": stats}
  except Exception as error:  # Orbax raises whatever it meets, and Exception.
    raise WeightsError(
      f"folder {path} is not a Flax checkpoint: {_first_line(error)}"
    ) from error


def _check_size(folder: pathlib.Path, tree: Any) -> None:
  """Raises ValueError when arrays are larger than what is on disk allows."""
  wanted = sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )
  there = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  if wanted > _ROOM + _MOST_SHRUNK * there:
    raise ValueError(f"{there:,} bytes cannot hold arrays of {wanted:,}")


def class_names_of_run(workdir: pathlib.Path) -> tuple[str, ...]:
  """Returns the class names that a run has written, by label."""
  about = _latest(workdir) / "about" / "metadata"
  try:
    names = read_object(about)["class_names"]
  except (OSError, ValueError, KeyError) as error:
    raise WeightsError(f"{about} is not that of a run: {error!r}") from error
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise WeightsError(f"{about} is not that of a run: class_names is no list")
  return tuple(names)


def _latest(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a run's latest complete checkpoint."""
  checkpoints = workdir / "checkpoints"
  steps = [
    int(path.name)
    for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
    if path.name.isdecimal()
  ]
  if not steps:
    raise WeightsError(f"workdir {workdir} has no checkpoint yet")
  return checkpoints / str(max(steps))


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
  import safetensors
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise WeightsError(
      f"weight file {path} is not a whole .safetensors file: "
      f"{_first_line(error)}"
    ) from error


def _first_line(error: Exception) -> str:
  return next(iter(str(error)[:300].splitlines()), type(error).__name__)
