"""The block of ResNeSt: Zhang et al. 2020, arXiv:2004.08955."""

import functools
from typing import ClassVar

from flax import linen as nn
import jax
from jaxtyping import Array, Float

from flax_resnet.models.attention import rounded
from flax_resnet.models.layers import Layers, ResidualBlock
from flax_resnet.models.norms import at_least_float32
from flax_resnet.models.pools import average_pool_3x3
from flax_resnet.models.shortcut import Shortcut


class SplitAttention(nn.Module):
  """A 3x3 convolution to `radix` maps and a weighted sum of them: section 3.1.

  V = sum_i a_i U_i, where a is the softmax over i of W2 ReLU(BN(W1 s)), and s
  the mean over the pixels of sum_i U_i; with one map, a is the sigmoid.

  Attributes:
    radix: number of maps.
    groups: groups of x and of each map.
    dilation: dilation of the 3x3.
    layers: maker of the convolutions and norms.
  """

  radix: int
  groups: int
  dilation: int
  layers: Layers

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h2 w2 c"]:
    conv, norm = self.layers.conv, self.layers.norm
    channels, radix = x.shape[-1], self.radix

    u = conv(
      radix * channels,
      3,
      dilation=self.dilation,
      groups=radix * self.groups,
      name="conv",
    )(x)
    u = norm(name="bn", activate=True)(u, train=train)
    u = u.reshape(*u.shape[:3], radix, channels)

    s = u.astype(at_least_float32(u.dtype)).sum(3).mean((1, 2), keepdims=True)
    pointwise = functools.partial(conv, groups=self.groups, use_bias=True)
    width = rounded(channels * radix / 4, least=32)
    a = pointwise(width, 1, name="conv1")(s)
    a = norm(name="bn1", activate=True)(a, train=train)
    a = pointwise(radix * channels, 1, name="conv2")(a)
    # The channels of W2 are by group first, those of U by map.
    a = a.squeeze((1, 2))
    a = a.reshape(x.shape[0], self.groups, radix, channels // self.groups)
    a = jax.nn.softmax(a, 2) if radix > 1 else nn.sigmoid(a)
    a = a.swapaxes(1, 2).reshape(x.shape[0], radix, channels)
    return (u * a[:, None, None]).sum(3)


class ResNeStBlock(ResidualBlock):
  """1x1, split attention and 1x1, and a skip: Fig. 2 (right) of the paper.

  Attributes:
    features: width of the stage; the output has four times as many channels.
    width_factor: channels of the split attention over `features`; default 1.
    groups: groups of its 3x3 ("cardinality"); default 1.
    radix: number of its maps; default 2.
    pool_first: whether the 3x3 average pool that has the stride comes before
      the split attention instead of behind it; default False.
  """

  width_factor: float = 1.0
  groups: int = 1
  radix: int = 2
  pool_first: bool = False

  expansion: ClassVar[int] = 4

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    drop_rate: float | Float[Array, ""] = 0.0,
    *,
    train: bool,
  ) -> Float[Array, "b h2 w2 c2"]:
    """Returns ReLU(F(x) + x); `drop_rate` as in `StochasticDepth`."""
    conv = functools.partial(self.layers.conv, use_bias=self.use_bias)
    norm = self.layers.norm
    width, out = int(self.features * self.width_factor), 4 * self.features

    f = conv(width, 1, name="conv1")(x)
    f = norm(name="bn1", activate=True)(f, train=train)
    if self.pool_first and self.strides > 1:
      f = average_pool_3x3(f, self.strides)
    f = SplitAttention(
      self.radix, self.groups, self.dilations[0], self.layers, name="conv2"
    )(f, train=train)
    if not self.pool_first and self.strides > 1:
      f = average_pool_3x3(f, self.strides)
    f = conv(out, 1, name="conv3")(f)
    f = norm(name="bn3", zero_init=self.zero_init_residual)(f, train=train)
    f = self.attend_and_drop(f, drop_rate, train=train)

    # Where the shape of x is not that of F(x), the skip is a 1x1 convolution.
    projection = functools.partial(self.layers.conv, out, kernel_size=1)
    skip = Shortcut(projection, **self.shortcut_options, name="shortcut")
    return nn.relu(f + skip(x, f.shape, train=train))
