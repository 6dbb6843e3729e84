"""The residual block: H(x) = F(x) + x (He et al. 2015, arXiv:1512.03385)."""

import functools
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.branch import SqueezeExcite, StochasticDepth
from flax_resnet.models.layers import Layers
from flax_resnet.models.shortcut import Shortcut


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a skip: Fig. 2 and Fig. 5 (left) of the paper.

  Attributes:
    features: Channels of both convolutions and of the output.
    strides: Of the first convolution; 2 halves height and width.
    dilations: Of the convolutions, before and after the place of the stride.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions; BatchNorm makes them redundant.
    zero_init_residual: Start the last scale at 0, so that the block starts as
      its shortcut (Goyal et al. 2017, section 5.1).
    squeeze_ratio: See `SqueezeExcite`; None for none.
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  squeeze_ratio: float | None = None
  layers: Layers = Layers()

  expansion: ClassVar[int] = 1
  pre_activation: ClassVar[bool] = False

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
    before, after = self.dilations
    skip = Shortcut(
      self.shortcut,
      self.features,
      self.strides,
      after,
      self.layers,
      name="shortcut",
    )

    f = conv(self.features, 3, self.strides, dilation=before, name="conv1")(x)
    f = norm(name="bn1")(f, train=train)
    f = nn.relu(f)
    f = conv(self.features, 3, dilation=after, name="conv2")(f)
    f = norm(name="bn2", zero_init=self.zero_init_residual)(f, train=train)
    if self.squeeze_ratio is not None:
      f = SqueezeExcite(self.squeeze_ratio, self.layers, name="se")(f)
    f = StochasticDepth(name="drop")(f, drop_rate, train=train)

    return nn.relu(f + skip(x, train=train))


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a skip: Fig. 5 (right) of the paper.

  Attributes:
    features: Of the stage: 64, 128, 256, 512; the output has four times these.
    strides: Of the 3x3 convolution (v1.5: fb.resnet.torch, torchvision); 2
      halves height and width.
    stride_in_1x1: Give the stride to the first 1x1, as the paper does.
    width_factor: Channels of the 3x3 over `features`: 2 in Wide ResNet-50-2,
      2 or 4 in ResNeXt.
    groups: Of the 3x3 convolution (ResNeXt: Xie et al. 2017).
    dilations: Before and after the place of the stride; the 3x3 has the first.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions; BatchNorm makes them redundant.
    zero_init_residual: Start the last scale at 0, so that the block starts as
      its shortcut (Goyal et al. 2017, section 5.1).
    squeeze_ratio: See `SqueezeExcite`; None for none.
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  stride_in_1x1: bool = False
  width_factor: int = 1
  groups: int = 1
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  squeeze_ratio: float | None = None
  layers: Layers = Layers()

  expansion: ClassVar[int] = 4
  pre_activation: ClassVar[bool] = False

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
    width = self.features * self.width_factor
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

    f = conv(width, 1, strides[0], name="conv1")(x)
    f = norm(name="bn1")(f, train=train)
    f = nn.relu(f)
    f = conv(
      width, 3, strides[1], dilation=before, groups=self.groups, name="conv2"
    )(f)
    f = norm(name="bn2")(f, train=train)
    f = nn.relu(f)
    f = conv(self.expansion * self.features, 1, name="conv3")(f)
    f = norm(name="bn3", zero_init=self.zero_init_residual)(f, train=train)
    if self.squeeze_ratio is not None:
      f = SqueezeExcite(self.squeeze_ratio, self.layers, name="se")(f)
    f = StochasticDepth(name="drop")(f, drop_rate, train=train)

    return nn.relu(f + skip(x, train=train))
