"""The pools of a residual network, and the halving of its maps by them."""

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

Downsampling = Literal["stride", "average", "blur"]
GlobalPool = Literal["avg", "max", "avgmax", "catavgmax", "none"]


def antialiased(
  kind: Downsampling, strides: int, dilations: tuple[int, int]
) -> tuple[int, Callable[[Array], Array]]:
  """Returns the stride of the 3x3 of a block, and the pool behind its ReLU.

  Zhang 2019, "Making Convolutional Networks Shift-Invariant Again",
  arXiv:1904.11486: the convolution is computed at stride 1, and what is
  subsampled are means, not pixels.

  Args:
    kind: "stride": no pool, the convolution has the stride; "average": means of
      2x2; "blur": `blur_pool`.
    strides: ratio of the height of the input of the block to its output.
    dilations: see `ResidualBlock`; where they differ, in the place of a stride,
      "blur" blurs at stride 1, as in timm.
  """
  if kind == "average" and strides > 1:
    return 1, lambda x: average_pool(x, strides)
  if kind == "blur" and (strides > 1 or len(set(dilations)) > 1):
    return 1, lambda x: blur_pool(x, strides)
  return strides, lambda x: x


def average_pool(
  x: Float[Array, "b h w c"], strides: int, *, ceil: bool = True
) -> Float[Array, "b h2 w2 c"]:
  """Returns means of 2x2, ceil(side / strides) of them: ResNet-D's pool.

  At stride 2 a window that hangs over the edge takes the mean of the pixels it
  covers; at stride 1, in a dilated network, it counts zeros. Both as in timm.

  Args:
    x: map.
    strides: 1 or 2.
    ceil: whether there are windows that hang over the edge; default True.
  """
  if not ceil:
    return nn.avg_pool(x, (2, 2), (strides, strides))
  height, width = x.shape[1:3]
  padding: Any = tuple(
    (0, -(-side // strides) * strides + 2 - strides - side)
    for side in (height, width)
  )
  return nn.avg_pool(
    x,
    window_shape=(2, 2),
    strides=(strides, strides),
    padding=padding,
    count_include_pad=strides == 1,
  )


def average_pool_3x3(
  x: Float[Array, "b h w c"], strides: int
) -> Float[Array, "b h2 w2 c"]:
  """Returns means of 3x3, padded by zeros that count: ResNeSt's pool."""
  padding: Any = ((1, 1), (1, 1))
  return nn.avg_pool(x, (3, 3), (strides, strides), padding)


def blur_pool(
  x: Float[Array, "b h w c"], strides: int
) -> Float[Array, "b h2 w2 c"]:
  """Returns x filtered by [1, 2, 1] / 4 along both sides, then subsampled.

  The border is reflected (Zhang 2019, section 3.2).
  """
  for axis in (1, 2):
    last = x.shape[axis]
    # Of a single row or column, itself.
    first, end = (
      lax.slice_in_dim(x, at, at + 1, axis=axis)
      for at in (min(1, last - 1), max(last - 2, 0))
    )
    x = jnp.concatenate([first, x, end], axis)
    before, at, after = (
      lax.slice_in_dim(x, start, last + start, strides, axis)
      for start in range(3)
    )
    x = (before + 2 * at + after) / 4
  return x


def global_pool(
  x: Float[Array, "b h w c"], kind: GlobalPool
) -> Float[Array, "b n"] | Float[Array, "b h w c"]:
  """Returns one number a channel: the mean ("avg"), or the greatest ("max").

  Args:
    x: the last map.
    kind: also "avgmax": half of the sum of both; "catavgmax": both, the means
      first; "none": the map as it is.
  """
  match kind:
    case "avg":
      return x.mean((1, 2))
    case "max":
      return x.max((1, 2))
    case "avgmax":
      return (x.mean((1, 2)) + x.max((1, 2))) / 2
    case "catavgmax":
      return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)
    case "none":
      return x
