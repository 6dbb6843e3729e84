"""The device mesh, and how batches and state lie on it.

`jax.jit` over this mesh is the one way onto many devices: it computes what one
device would compute on the whole batch.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from flax_resnet.errors import InputError

BATCH_AXIS = "batch"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """Returns a mesh of one axis over `devices`; None for all of all hosts.

  Raises:
    InputError: if processes have different numbers of devices, among which
      their equal parts of a batch cannot be split.
  """
  devices = jax.devices() if devices is None else devices
  counts = collections.Counter(device.process_index for device in devices)
  (most, high), *_, (least, low) = counts.most_common() * 2
  if high != low:
    raise InputError(
      f"process {most} has {high} devices and process {least} has {low}: start "
      "all with the same number of devices"
    )
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
