"""The pre-activation block: H(x) = F(x) + x, and nothing after the sum.

He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027:
BatchNorm and ReLU come before each convolution, so that from any block to any
other the signal and its gradient pass through sums alone.
"""

import functools
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.branch import StochasticDepth
from flax_resnet.models.layers import Layers
from flax_resnet.models.shortcut import Shortcut


class PreActBasicBlock(nn.Module):
  """Two 3x3 convolutions, each after BatchNorm and ReLU: Fig. 4 (e).

  Attributes:
    features: Channels of both convolutions and of the output.
    strides: Of the first convolution; 2 halves height and width.
    dilations: Of the convolutions, before and after the place of the stride.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions.
    zero_init_residual: Start the last kernel at 0, so that the block starts as
      its shortcut.
    dropout: Rate between the convolutions (Zagoruyko & Komodakis 2016, 2.4).
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  dropout: float = 0.0
  layers: Layers = Layers()

  expansion: ClassVar[int] = 1
  pre_activation: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    drop_rate: float | Float[Array, ""] = 0.0,
    *,
    train: bool,
  ) -> Float[Array, "b h2 w2 c2"]:
    """Returns F(x) + x; `drop_rate` as in `StochasticDepth`."""
    conv = functools.partial(self.layers.conv, use_bias=self.use_bias)
    norm = self.layers.norm
    before, after = self.dilations
    skip = Shortcut(
      self.shortcut,
      self.features,
      self.strides,
      after,
      self.layers,
      name="shortcut",
    )

    a = nn.relu(norm(name="bn1")(x, train=train))
    f = conv(self.features, 3, self.strides, dilation=before, name="conv1")(a)
    f = nn.relu(norm(name="bn2")(f, train=train))
    f = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(f)
    f = conv(
      self.features,
      3,
      dilation=after,
      zero_init=self.zero_init_residual,
      name="conv2",
    )(f)
    f = StochasticDepth(name="drop")(f, drop_rate, train=train)

    return f + skip(x, a, train=train)


class PreActBottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU.

  Attributes:
    features: Of the stage; the output has four times these.
    strides: Of the 3x3 convolution; 2 halves height and width.
    stride_in_1x1: Give the stride to the first 1x1, as the paper's code does.
    dilations: Before and after the place of the stride; the 3x3 has the first.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions.
    zero_init_residual: Start the last kernel at 0, so that the block starts as
      its shortcut.
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  stride_in_1x1: bool = False
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  layers: Layers = Layers()

  expansion: ClassVar[int] = 4
  pre_activation: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    drop_rate: float | Float[Array, ""] = 0.0,
    *,
    train: bool,
  ) -> Float[Array, "b h2 w2 c2"]:
    """Returns F(x) + x; `drop_rate` as in `StochasticDepth`."""
    conv = functools.partial(self.layers.conv, use_bias=self.use_bias)
    norm = self.layers.norm
    strides = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
    before, after = self.dilations
    skip = Shortcut(
      self.shortcut,
      self.expansion * self.features,
      self.strides,
      after,
      self.layers,
      name="shortcut",
    )

    a = nn.relu(norm(name="bn1")(x, train=train))
    f = conv(self.features, 1, strides[0], name="conv1")(a)
    f = nn.relu(norm(name="bn2")(f, train=train))
    f = conv(self.features, 3, strides[1], dilation=before, name="conv2")(f)
    f = nn.relu(norm(name="bn3")(f, train=train))
    f = conv(
      self.expansion * self.features,
      1,
      zero_init=self.zero_init_residual,
      name="conv3",
    )(f)
    f = StochasticDepth(name="drop")(f, drop_rate, train=train)

    return f + skip(x, a, train=train)
