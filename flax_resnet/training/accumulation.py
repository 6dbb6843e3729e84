"""The gradient of a large batch, from parts that fit into memory.

It is that of the whole batch, and so are the running statistics: a loss is a
mean over examples, and BatchNorm normalizes within groups that stay whole.
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


def accumulate_gradients(
  gradients: Gradients, parts: int, group_size: int, mesh: Mesh
) -> Gradients:
  """Returns the same function, which computes one part of a batch at a time.

  What the network itself draws at random, as stochastic depth does, is drawn
  for each part: other drops than those of a whole batch, with the same chances.

  Args:
    gradients: function of a key and a batch.
    parts: number of parts, which divides the batch.
    group_size: examples, in batch order, that stay in one part, see
      `accumulation_group_size`.
    mesh: devices over which the batch is split.
  """
  if parts == 1:
    return gradients

  def accumulated(key, batch):
    split = split_batch(batch, parts, group_size)
    split = lax.with_sharding_constraint(split, sharding.split_by_part(mesh))

    def add(total, numbered):
      index, part = numbered
      new = gradients(jax.random.fold_in(key, index), part)
      return jax.tree.map(jnp.add, total, new), None

    shapes = jax.eval_shape(
      lambda: gradients(key, jax.tree.map(lambda x: x[0], split))
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    numbered = (jnp.arange(parts), split)
    (grads, batch_stats, sums), _ = lax.scan(add, zeros, numbered)
    grads, batch_stats = jax.tree.map(lambda x: x / parts, (grads, batch_stats))
    return grads, batch_stats, sums

  return accumulated


def split_batch(batch: Batch, parts: int, group_size: int) -> Batch:
  """Returns a batch [b, ...] as [parts, b / parts, ...].

  Part k has the groups k, k + parts, k + 2 parts, ... of the batch. So the
  examples of a group stay together, each device works on a share of each part,
  and what a part holds does not depend on how many devices there are. Where a
  device holds a multiple of `parts` groups, nothing moves between devices.
  """

  def split(x):
    groups = x.reshape(-1, parts, group_size, *x.shape[1:])
    return groups.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(split, batch)


def accumulation_group_size(
  model: ResNet, batch_size: int, parts: int, mesh: Mesh, *, frozen: bool
) -> int:
  """Returns how many examples, in batch order, have to stay in one part.

  Args:
    model: the network.
    batch_size: examples of a step.
    parts: number of parts of a batch.
    mesh: devices over which each part is split.
    frozen: whether BatchNorm takes its running statistics, as in evaluation.

  Raises:
    ValueError: if no parts give what the whole batch does.
  """
  if parts == 1:
    return batch_size
  if batch_size % parts:
    raise ValueError(
      f"accumulate is {parts}, which does not divide batch_size "
      f"{batch_size}: use a divisor of it"
    )
  part = batch_size // parts
  if part % mesh.size:
    raise ValueError(
      f"accumulate is {parts}, which makes parts of {part} examples that "
      f"{mesh.size} devices cannot share evenly: use fewer parts"
    )
  if model.norm != "batch" or frozen:
    return 1
  if (group := model.norm_group_size) is None:
    raise ValueError(
      f"accumulate is {parts} and model.norm_group_size None, with which "
      f"BatchNorm needs all {batch_size} examples at once: set "
      f"model.norm_group_size to {part} or a divisor of it"
    )
  if part % group:
    raise ValueError(
      f"accumulate is {parts}, which makes parts of {part} examples that are "
      f"no groups of {group}: set model.norm_group_size to a divisor of {part}"
    )
  return group
