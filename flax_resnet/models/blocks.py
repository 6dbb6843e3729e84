"""The residual block: H(x) = F(x) + x (He et al. 2015, arXiv:1512.03385)."""

from collections.abc import Sequence
import functools
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.layers import ResidualBlock
from flax_resnet.models.pools import antialiased, Downsampling
from flax_resnet.models.shortcut import Shortcut


class BasicBlock(ResidualBlock):
  """Two 3x3 convolutions and a skip: Fig. 2 and Fig. 5 (left) of the paper.

  Attributes:
    features: channels of both convolutions and of the output.
    downsampling: what takes the stride: the first 3x3, or a pool behind its
      ReLU, see `antialiased`; default "stride".
  """

  downsampling: Downsampling = "stride"

  expansion: ClassVar[int] = 1

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
    strides, pool = antialiased(self.downsampling, self.strides, self.dilations)

    f = conv(self.features, 3, strides, dilation=before, name="conv1")(x)
    f = pool(norm(name="bn1", activate=True)(f, train=train))
    f = conv(self.features, 3, dilation=after, name="conv2")(f)
    f = norm(name="bn2", zero_init=self.zero_init_residual)(f, train=train)
    f = self.attend_and_drop(f, drop_rate, train=train)

    # Where the shape of x is not that of F(x), the skip is a 1x1 convolution.
    projection = functools.partial(
      self.layers.conv, self.features, kernel_size=1
    )
    skip = Shortcut(projection, **self.shortcut_options, name="shortcut")
    return nn.relu(f + skip(x, f.shape, train=train))


class BottleneckBlock(ResidualBlock):
  """1x1, 3x3 and 1x1 convolutions and a skip: Fig. 5 (right) of the paper.

  Attributes:
    features: width of the stage, 64, 128, 256 or 512; the output has four times
      as many channels.
    stride_in_1x1: whether the first 1x1 has the stride, as in the paper; else
      the 3x3 has it (v1.5: fb.resnet.torch, torchvision).
    width_factor: channels of the 3x3 over `features`: 2 in Wide ResNet-50-2, 2
      to 16 in ResNeXt; default 1.
    reduce_first: channels of the 3x3 over those of the first 1x1: 2 in
      SENet-154; default 1.
    widths: channels of the three convolutions in a pruned net, in place of
      those that follow from `features`; default None.
    groups: groups of the 3x3 (ResNeXt: Xie et al. 2017, arXiv:1611.05431);
      default 1.
    downsampling: what takes the stride: a convolution, or a pool behind the
      ReLU of the 3x3, see `antialiased`; default "stride".
  """

  stride_in_1x1: bool = False
  width_factor: int = 1
  reduce_first: int = 1
  widths: Sequence[int] | None = None
  groups: int = 1
  downsampling: Downsampling = "stride"

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
    width = self.features * self.width_factor
    widths = (width // self.reduce_first, width, 4 * self.features)
    first, width, out = self.widths or widths
    strides, pool = antialiased(self.downsampling, self.strides, self.dilations)
    strides = (strides, 1) if self.stride_in_1x1 else (1, strides)

    f = conv(first, 1, strides[0], name="conv1")(x)
    f = norm(name="bn1", activate=True)(f, train=train)
    f = conv(
      width,
      3,
      strides[1],
      dilation=self.dilations[0],
      groups=self.groups,
      name="conv2",
    )(f)
    f = pool(norm(name="bn2", activate=True)(f, train=train))
    f = conv(out, 1, name="conv3")(f)
    f = norm(name="bn3", zero_init=self.zero_init_residual)(f, train=train)
    f = self.attend_and_drop(f, drop_rate, train=train)

    # Where the shape of x is not that of F(x), the skip is a 1x1 convolution.
    projection = functools.partial(self.layers.conv, out, kernel_size=1)
    skip = Shortcut(projection, **self.shortcut_options, name="shortcut")
    return nn.relu(f + skip(x, f.shape, train=train))
