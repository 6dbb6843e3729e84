"""Numbers for tests, drawn by NumPy: JAX compiles each shape it draws."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from flax_resnet import ResNet


def normal(
  seed: int, shape: Sequence[int], dtype: DTypeLike = np.float32
) -> jax.Array:
  """Returns standard normal numbers."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def variables_of(
  model: ResNet, image_shape: Sequence[int], dtype: DTypeLike = np.float32
) -> dict[str, Any]:
  """Returns variables without zeros and ones, which hide what they multiply.

  Args:
    model: The network.
    image_shape: [b, h, w, c].
    dtype: Of the variables.
  """
  rng = np.random.default_rng(1)

  def draw(leaf):
    if leaf.ndim == 1:  # A variance must be positive.
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(scale * rng.normal(size=leaf.shape), dtype)

  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct(image_shape, dtype),
  )
  return jax.tree.map(draw, shapes)
