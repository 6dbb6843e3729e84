"""A moving average of a network over the steps of its training.

Polyak & Juditsky 1992; with weights that fall exponentially as in Szegedy et
al. 2016, section 8 (https://arxiv.org/abs/1512.00567). The average starts at
the variables that the run starts from, as timm's `ModelEma`, and BatchNorm's
running statistics are averaged with the parameters that they belong to.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from flax_resnet.models.layers import at_least_float32


def start(variables: Any) -> Any:
  """Returns the average before the first step: a copy of the variables.

  In float32 or better: in bfloat16, an average that keeps 0.999 of itself would
  never move.
  """
  # A copy also because a step takes the memory of either.
  return jax.tree.map(
    lambda x: jnp.array(x, at_least_float32(x.dtype), copy=True), variables
  )


def follow(
  average: Any, variables: Any, step: jax.Array, *, decay: float, every: int
) -> Any:
  """Returns the average after so many steps.

  Args:
    average: Before.
    variables: After this step.
    step: Completed steps, int32 [].
    decay: Share of the average that is kept: new = decay * old + (1 - decay) *
      variables.
    every: Steps between two updates; at others the average stays as it is.
  """

  def move(average):
    precise = jax.tree.map(lambda x, a: x.astype(a.dtype), variables, average)
    return optax.incremental_update(precise, average, 1 - decay)

  if every == 1:
    return move(average)
  return lax.cond(step % every == 0, move, lambda average: average, average)
