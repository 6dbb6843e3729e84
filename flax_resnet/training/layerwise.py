"""Optimizers that look at one layer at a time."""

from typing import Any

import jax
import optax

from flax_resnet.models import stacking


def decayed(params: Any) -> Any:
  """Marks the kernels; scales and biases are not decayed (Goyal et al.)."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def trust_ratio(
  coefficient: float = 1.0, eps: float = 0.0
) -> optax.GradientTransformation:
  """Scales the update of each kernel to a share of the kernel's own norm.

  Scales and biases keep theirs: their norms say little, and are 0 at first.
  """
  ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient, eps=eps)
  return optax.masked(ratio, decayed)


def by_layer(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Shows an optimizer the layers of `scan=True` one by one.

  There, the kernels of several blocks lie in one array, which has one norm, and
  their scales in a matrix, which looks like a kernel.
  """

  def init(params):
    return optimizer.init(_single(params))

  def update(updates, state, params=None):
    if not _is_stacked(updates):
      return optimizer.update(updates, state, params)
    single = None if params is None else _single(params)
    updates, state = optimizer.update(_single(updates), state, single)
    return stacking.stack({"params": updates})["params"], state

  return optax.GradientTransformation(init, update)


def _single(params: Any) -> Any:
  if not _is_stacked(params):
    return params
  return stacking.unstack({"params": params})["params"]


def _is_stacked(params: Any) -> bool:
  return any(name.endswith("_blocks") for name in params)
