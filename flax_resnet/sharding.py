"""The device mesh, and how batches and state lie on it.

`jax.jit` over this mesh is the one way onto many devices: what is computed is
what one device would compute on the whole batch.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

BATCH_AXIS = "batch"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """Returns a mesh of one axis over `devices`; None for all of all hosts."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), (BATCH_AXIS,), (AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array: parameters, optimizer state."""
  return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
  """Every device holds a part of the first axis: images, labels."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def split_by_part(mesh: Mesh) -> NamedSharding:
  """Every device holds a share of each part of a batch: [parts, b, ...]."""
  return NamedSharding(mesh, PartitionSpec(None, BATCH_AXIS))


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
  """Raises ValueError when a batch cannot be split evenly over the devices."""
  if batch_size < 1 or batch_size % mesh.size:
    raise ValueError(
      f"batch_size is {batch_size}, which cannot be split evenly over "
      f"{mesh.size} devices: use a positive multiple of {mesh.size}"
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The smallest batch size from `batch_size` on that the devices can split."""
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
