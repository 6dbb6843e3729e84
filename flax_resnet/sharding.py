"""The device mesh, how batches and state lie on it, and several hosts.

`jax.jit` over this mesh is the one way onto many devices: it computes what one
device would compute on the whole batch.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import glob
import importlib.util
import os
from typing import Any

from etils import epy
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from flax_resnet.errors import InputError

with epy.lazy_imports():  # Slow to import; only several hosts need it.
  from jax.experimental import multihost_utils

BATCH_AXIS = "batch"
# Bytes of the text that one host sends to all: all must know how many come.
_TEXT_BYTES = 4096


def join_hosts(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several that compute together, if it is one.

  It is, if the arguments say so, or else where SLURM or Open MPI has started
  several processes, or on a TPU VM. To be called before anything else of JAX.

  Args:
    coordinator: address of process 0, "HOST:PORT".
    num_processes: number of processes.
    process_id: number of this one, from 0.

  Raises:
    ValueError: if only some are given, or they do not fit together.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None):
    if _is_one_of_many(os.environ):
      jax.distributed.initialize()
    return
  if None in given:
    raise ValueError(
      "--coordinator, --num_processes and --process_id belong together: give "
      "all three, or none"
    )
  if ":" not in str(coordinator):
    raise ValueError(f"--coordinator is {coordinator}: use HOST:PORT")
  if not 0 <= (process_id or 0) < (num_processes or 0):
    raise ValueError(
      f"--process_id is {process_id} of {num_processes}: count from 0"
    )
  jax.distributed.initialize(coordinator, num_processes, process_id)


def _is_one_of_many(environ: Mapping[str, str]) -> bool:
  """Whether a launcher has started several processes of a run."""
  for count, rank in (
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  ):
    if rank in environ and int(environ.get(count, 1)) > 1:
      return True
  # On a TPU VM a process finds the others of its slice, or that it is alone.
  return bool(importlib.util.find_spec("libtpu")) and any(
    glob.glob(path) for path in ("/dev/accel*", "/dev/vfio/[0-9]*")
  )


def on_first_host(work: Callable[[], str | None]) -> str:
  """Calls `work` on process 0 and returns its text on all.

  Raises:
    InputError: on all, if `work` raises it or an OSError: no host is left
      waiting for the others.
  """
  if jax.process_count() == 1:
    return work() or ""
  text = ""
  if jax.process_index() == 0:
    try:
      text = "text:" + (work() or "")
    except (InputError, OSError) as error:
      text = f"error:{error}"
  sent = np.zeros(_TEXT_BYTES, np.uint8)
  encoded = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
  sent[: len(encoded)] = encoded
  received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
  kind, _, text = received.rstrip(b"\0").decode(errors="ignore").partition(":")
  if kind == "error":
    raise InputError(text)
  return text


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """Returns a mesh of one axis over `devices`; None for all of all hosts."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), (BATCH_AXIS,), (AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [b, ...] that is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def split_by_part(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of [parts, b, ...]: a share of each part a device."""
  return NamedSharding(mesh, PartitionSpec(None, BATCH_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Returns the tree with every array whole on every device of the mesh.

  By way of NumPy, shard by shard: `jax.device_put` of a `jax.Array` onto
  devices of other processes is refused, or, with one device a process, gives an
  array whose shards cannot be listed, which Orbax cannot save (JAX 0.10, 0.12).

  Args:
    tree: arrays; the same on every host.
    mesh: the devices, of all hosts.
  """
  sharding = replicated(mesh)

  def whole(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

  return jax.tree.map(whole, tree)


def shard_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Returns the global batch of which this host holds its part in `batch`."""
  sharding = split_by_batch(mesh)
  return {
    key: jax.make_array_from_process_local_data(sharding, value)
    for key, value in batch.items()
  }


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError if a batch cannot be split evenly over the devices."""
  if batch_size % mesh.size:
    raise ValueError(
      f"batch_size is {batch_size}, which cannot be split evenly over "
      f"{mesh.size} devices: use a positive multiple of {mesh.size}"
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Returns the smallest batch size from here on that the devices can split."""
  return -(-batch_size // mesh.size) * mesh.size


def prefetch(
  batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
  """Yields global batches; the next ones are on their way to the devices."""
  waiting = collections.deque()
  for batch in batches:
    waiting.append(shard_batch(batch, mesh))
    if len(waiting) > ahead:
      yield waiting.popleft()
  yield from waiting
