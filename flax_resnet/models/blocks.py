"""The residual block: H(x) = F(x) + x (He et al. 2015, arXiv:1512.03385)."""

import functools
from typing import ClassVar

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_resnet.models.layers import Layers

SHORTCUTS = ("identity", "projection", "projection_all", "conv", "none")


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a skip: Fig. 2 and Fig. 5 (left) of the paper.

  Attributes:
    features: Channels of both convolutions and of the output.
    strides: Of the first convolution; 2 halves height and width.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions; BatchNorm makes them redundant.
    zero_init_residual: Start the last scale at 0, so that the block starts as
      its shortcut (Goyal et al. 2017, section 5.1).
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  layers: Layers = Layers()

  expansion: ClassVar[int] = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h2 w2 c2"]:
    conv = functools.partial(self.layers.conv, use_bias=self.use_bias)
    norm = self.layers.norm
    skip = Shortcut(
      self.shortcut, self.features, self.strides, self.layers, name="shortcut"
    )

    f = conv(self.features, 3, self.strides, name="conv1")(x)
    f = norm(name="bn1")(f, train=train)
    f = nn.relu(f)
    f = conv(self.features, 3, name="conv2")(f)
    f = norm(name="bn2", zero_init=self.zero_init_residual)(f, train=train)

    return nn.relu(f + skip(x, train=train))


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a skip: Fig. 5 (right) of the paper.

  The 3x3 takes the stride (v1.5: fb.resnet.torch, torchvision), where the
  paper's Caffe models give it to the first 1x1.

  Attributes:
    features: Channels of the 3x3 convolution; the output has four times these.
    strides: Of the 3x3 convolution; 2 halves height and width.
    shortcut: How x reaches the sum, see `Shortcut`.
    use_bias: Biases in the convolutions; BatchNorm makes them redundant.
    zero_init_residual: Start the last scale at 0, so that the block starts as
      its shortcut (Goyal et al. 2017, section 5.1).
    layers: How convolutions and norms are made.
  """

  features: int
  strides: int = 1
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  layers: Layers = Layers()

  expansion: ClassVar[int] = 4

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h2 w2 c2"]:
    conv = functools.partial(self.layers.conv, use_bias=self.use_bias)
    norm = self.layers.norm
    width = self.features * self.expansion
    skip = Shortcut(
      self.shortcut, width, self.strides, self.layers, name="shortcut"
    )

    f = conv(self.features, 1, name="conv1")(x)
    f = norm(name="bn1")(f, train=train)
    f = nn.relu(f)
    f = conv(self.features, 3, self.strides, name="conv2")(f)
    f = norm(name="bn2")(f, train=train)
    f = nn.relu(f)
    f = conv(width, 1, name="conv3")(f)
    f = norm(name="bn3", zero_init=self.zero_init_residual)(f, train=train)

    return nn.relu(f + skip(x, train=train))


class Shortcut(nn.Module):
  """The x of F(x) + x, fitted to the shape of F(x) (sections 3.3 and 4.1).

  Attributes:
    kind: One of
      "identity": x itself; where the shape changes, every `strides`-th pixel,
        with zero channels on both sides. No parameters (option A).
      "projection": where the shape changes, a 1x1 convolution and BatchNorm;
        else x itself (option B).
      "projection_all": the projection in every block (option C).
      "conv": a 1x1 convolution with bias and without BatchNorm in every block.
      "none": nothing is added; the net is a plain one.
    features: Channels of F(x).
    strides: By which F(x) is smaller than x.
    layers: How convolutions and norms are made.

  Raises:
    ValueError: For another `kind`, or when the identity would have to drop
      channels.
  """

  kind: str
  features: int
  strides: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h2 w2 c2"] | float:
    fits = self.strides == 1 and x.shape[-1] == self.features
    conv = functools.partial(
      self.layers.conv, self.features, 1, self.strides, name="conv"
    )
    match self.kind:
      case "identity":
        return x if fits else _pad(x, self.features, self.strides)
      case "projection" if fits:
        return x
      case "projection" | "projection_all":
        return self.layers.norm(name="bn")(conv()(x), train=train)
      case "conv":
        return conv(use_bias=True)(x)
      case "none":
        return 0.0
      case _:
        raise ValueError(
          f"unknown shortcut {self.kind!r}: use one of {', '.join(SHORTCUTS)}"
        )


def _pad(x: Array, features: int, strides: int) -> Array:
  """Subsamples x and adds zero channels, half of them on each side."""
  missing = features - x.shape[-1]
  if missing < 0:
    raise ValueError(
      f"an identity shortcut cannot go from {x.shape[-1]} to {features} "
      'channels: use shortcut="projection"'
    )
  channels = (missing // 2, missing - missing // 2)
  return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), channels))
