"""The gradient of a large batch, from parts that fit into memory.

It is that of the whole batch, and so are the running statistics: a loss is a
mean over examples, and BatchNorm normalises within groups that stay whole.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh

from flax_resnet import sharding
from flax_resnet.models import ResNet

Batch = dict[str, jax.Array]
# (key, batch) -> gradients and running statistics, which are means over the
# batch, and the metrics, which are sums.
Gradients = Callable[[jax.Array, Batch], tuple[Any, Any, Any]]


def in_parts(
  gradients: Gradients, number: int, group_size: int, mesh: Mesh
) -> Gradients:
  """Returns the same function; it looks at one part of the batch at a time.

  What the network itself draws at random, as stochastic depth does, is drawn
  for each part: other drops than those of a whole batch, with the same chances.

  Args:
    gradients: Of a batch.
    number: Of parts.
    group_size: See `kept_together`.
    mesh: Where the batch lies.
  """
  if number == 1:
    return gradients

  def mean(key, batch):
    parts = split(batch, number, group_size)
    parts = lax.with_sharding_constraint(parts, sharding.split_by_part(mesh))

    def add(total, numbered):
      index, part = numbered
      found = gradients(jax.random.fold_in(key, index), part)
      return jax.tree.map(jnp.add, total, found), None

    shapes = jax.eval_shape(lambda: gradients(key, _first(parts)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    numbered = (jnp.arange(number), parts)
    (grads, batch_stats, sums), _ = lax.scan(add, zeros, numbered)
    grads, batch_stats = jax.tree.map(
      lambda x: x / number, (grads, batch_stats)
    )
    return grads, batch_stats, sums

  return mean


def split(batch: Batch, number: int, group_size: int) -> Batch:
  """[b, ...] -> [number, b / number, ...].

  Part k has the groups k, k + number, k + 2 number, ... of the batch. So the
  examples of a group stay together, each device works on a share of each part,
  and what a part holds does not depend on how many devices there are. Where a
  device holds a multiple of `number` groups, nothing moves between devices.
  """

  def of(x):
    groups = x.reshape(-1, number, group_size, *x.shape[1:])
    return groups.swapaxes(0, 1).reshape(number, -1, *x.shape[1:])

  return jax.tree.map(of, batch)


def kept_together(
  model: ResNet, batch_size: int, number: int, mesh: Mesh, *, frozen: bool
) -> int:
  """Returns how many examples, in batch order, a part must not divide.

  Args:
    model: The network.
    batch_size: Of a whole step.
    number: Of parts.
    mesh: The devices.
    frozen: Whether BatchNorm works as in evaluation.

  Raises:
    ValueError: When there are no parts that give what the whole batch does.
  """
  if number == 1:
    return batch_size
  if batch_size % number:
    raise ValueError(
      f"accumulate is {number}, which does not divide batch_size "
      f"{batch_size}: use a divisor of it"
    )
  part = batch_size // number
  if part % mesh.size:
    raise ValueError(
      f"accumulate is {number}, which makes parts of {part} examples that "
      f"{mesh.size} devices cannot share evenly: use fewer parts"
    )
  if model.norm == "none" or frozen:
    return 1
  if (group := model.norm_group_size) is None:
    raise ValueError(
      f"accumulate is {number} and model.norm_group_size None, with which "
      f"BatchNorm needs all {batch_size} examples at once: set "
      f"model.norm_group_size to {part} or a divisor of it"
    )
  if part % group:
    raise ValueError(
      f"accumulate is {number}, which makes parts of {part} examples that are "
      f"no groups of {group}: set model.norm_group_size to a divisor of {part}"
    )
  return group


def _first(parts: Batch) -> Batch:
  return jax.tree.map(lambda x: x[0], parts)
