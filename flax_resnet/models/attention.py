"""Channel attention: how much each channel of F(x) counts.

A block makes one by `attention(channels=..., layers=..., name="se")`.
"""

import functools
import math

from flax import linen as nn
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_resnet.models.layers import Layers
from flax_resnet.models.norms import at_least_float32


def rounded(width: float, least: int = 8) -> int:
  """Returns the nearest multiple of 8, and at least `least`, as timm does."""
  return max(least, int(width + 4) // 8 * 8)


class SqueezeExcite(nn.Module):
  """f sigmoid(W2 ReLU(W1 mean(f))): squeeze-and-excitation (Hu et al. 2018).

  Attributes:
    channels: channels of the output of the block.
    ratio: width of the squeeze over `channels`: 1/16 in the paper, 1/4 in
      ResNet-RS. It is rounded to a multiple of 8.
    layers: maker of the convolutions.
  """

  channels: int
  ratio: float = 1 / 16
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    conv, squeezed = self.layers.conv, rounded(self.channels * self.ratio)
    s = f.astype(at_least_float32(f.dtype)).mean((1, 2), keepdims=True)
    s = nn.relu(conv(squeezed, 1, use_bias=True, name="fc1")(s))
    s = conv(f.shape[-1], 1, use_bias=True, name="fc2")(s)
    return f * nn.sigmoid(s)


class EfficientChannelAttention(nn.Module):
  """f sigmoid(W * mean(f)), a convolution over neighbouring channels: ECA.

  Its size is the odd number nearest to (log2(channels) + 1) / 2, as the code of
  the paper rounds (Wang et al. 2020, arXiv:1910.03151, section 3.3).

  Attributes:
    channels: channels of the output of the block, before any are pruned.
    layers: maker of the block's convolutions, for its dtypes.
  """

  channels: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    half = int((math.log2(self.channels) + 1) / 2)
    means = f.astype(at_least_float32(f.dtype)).mean((1, 2))
    weights = nn.Conv(
      1,
      (max(half | 1, 3),),
      use_bias=False,
      conv_general_dilated=_weighted_neighbours,
      dtype=self.layers.dtype,
      param_dtype=self.layers.param_dtype,
      name="conv",
    )(means[:, :, None])
    return f * nn.sigmoid(weights.squeeze(-1)[:, None, None])


def _weighted_neighbours(
  x: Float[Array, "b c 1"], kernel: Float[Array, "k 1 1"], *_, **__
) -> Float[Array, "b c 1"]:
  """Returns the convolution, as k products of vectors.

  Takes the place of `jax.lax.conv_general_dilated`, which XLA and ONNX would
  give another layout.
  """
  size, channels = kernel.shape[0], x.shape[1]
  x = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
  shifted = (
    lax.slice_in_dim(x, start, start + channels, axis=1)
    for start in range(size)
  )
  return functools.reduce(
    jnp.add, (y * kernel[None, at] for at, y in enumerate(shifted))
  )
