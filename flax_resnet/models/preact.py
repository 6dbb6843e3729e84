"""The pre-activation block: H(x) = F(x) + x, and nothing after the sum.

He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027:
BatchNorm and ReLU come before each convolution, so that from any block to any
other the signal and its gradient pass through sums alone.
"""

import functools
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.layers import ResidualBlock
from flax_resnet.models.shortcut import Shortcut


class PreActBasicBlock(ResidualBlock):
  """Two 3x3 convolutions, each after BatchNorm and ReLU: Fig. 4 (e).

  Attributes:
    features: channels of both convolutions and of the output.
    dropout: rate between the convolutions, in [0, 1) (Zagoruyko & Komodakis
      2016, section 2.4); default 0.
  """

  dropout: float = 0.0

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
    zero_init = self.zero_init_residual

    a = norm(name="bn1", activate=True)(x, train=train)
    f = conv(self.features, 3, self.strides, dilation=before, name="conv1")(a)
    f = norm(name="bn2", activate=True)(f, train=train)
    f = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(f)
    f = conv(
      self.features, 3, dilation=after, zero_init=zero_init, name="conv2"
    )(f)
    f = self.attend_and_drop(f, drop_rate, train=train)

    projection = functools.partial(
      self.layers.conv, self.features, kernel_size=1
    )
    skip = Shortcut(projection, **self.shortcut_options, name="shortcut")
    return f + skip(x, f.shape, activated=a, train=train)


class PreActBottleneckBlock(ResidualBlock):
  """1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU.

  Attributes:
    features: width of the stage; the output has four times as many channels.
    stride_in_1x1: whether the first 1x1 has the stride, as in the paper's code;
      else the 3x3 has it.
  """

  stride_in_1x1: bool = False

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
    out, zero_init = 4 * self.features, self.zero_init_residual
    strides = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
    dilation = self.dilations[0]

    a = norm(name="bn1", activate=True)(x, train=train)
    f = conv(self.features, 1, strides[0], name="conv1")(a)
    f = norm(name="bn2", activate=True)(f, train=train)
    f = conv(self.features, 3, strides[1], dilation=dilation, name="conv2")(f)
    f = norm(name="bn3", activate=True)(f, train=train)
    f = conv(out, 1, zero_init=zero_init, name="conv3")(f)
    f = self.attend_and_drop(f, drop_rate, train=train)

    projection = functools.partial(self.layers.conv, out, kernel_size=1)
    skip = Shortcut(projection, **self.shortcut_options, name="shortcut")
    return f + skip(x, f.shape, activated=a, train=train)
