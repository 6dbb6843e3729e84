"""Numbers for tests, drawn by NumPy: JAX compiles each shape it draws."""

from collections.abc import Sequence
import functools
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike
from PIL import Image


def normal(
  seed: int, shape: Sequence[int], dtype: DTypeLike = np.float32
) -> jax.Array:
  """Returns standard normal numbers."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def variable_shapes(
  module: nn.Module, shape: Sequence[int], dtype: DTypeLike = np.float32
) -> dict[str, Any]:
  """Returns the variables as shapes; arguments as in `variables_of`."""
  return jax.eval_shape(
    functools.partial(module.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct(shape, dtype),
  )


def variables_of(
  module: nn.Module, shape: Sequence[int], dtype: DTypeLike = np.float32
) -> dict[str, Any]:
  """Returns variables without zeros and ones, which hide what they multiply.

  Args:
    module: a network or a block, called with `train`.
    shape: shape of its input, [b, h, w, c].
    dtype: dtype of the input and of the variables; default float32.
  """
  rng = np.random.default_rng(1)

  def draw(leaf):
    if leaf.ndim == 1:  # A variance must be positive.
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(scale * rng.normal(size=leaf.shape), dtype)

  return jax.tree.map(draw, variable_shapes(module, shape, dtype))


def write_photographs(root: pathlib.Path) -> pathlib.Path:
  """Writes a folder a class, of four, each with 30 images of 9x9 pixels."""
  rng = np.random.default_rng(0)
  for label in range(4):
    (root / str(label)).mkdir()
    for i in range(30):
      pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
      Image.fromarray(pixels).save(root / str(label) / f"{i}.png")
  return root
