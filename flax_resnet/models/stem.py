"""The stem: the layers before the first block."""

import math
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.cpu import max_pool
from flax_resnet.models.layers import Layers, space_to_depth_conv
from flax_resnet.models.pools import average_pool, blur_pool, Downsampling

StemKind = Literal[
  "imagenet", "cifar", "deep", "tiered", "deep_convolutional", "bit"
]


def stem_stride(stem: str) -> int:
  """Returns the height of the input over that of the first block's input."""
  return 1 if stem == "cifar" else 4


def stem_widths(kind: StemKind, features: int) -> list[int]:
  """Returns the channels of the convolutions of a stem, before its pool."""
  match kind:
    case "deep" | "deep_convolutional":
      return [features // 2, features // 2, features]
    case "tiered":
      return [features * 3 // 8, features // 2, features]
    case _:
      return [features]


class Stem(nn.Module):
  """The first convolutions, and the pool after them.

  Attributes:
    kind: one of
      "imagenet": a 7x7 convolution at stride 2, a 3x3 max-pool at stride 2.
      "cifar": a 3x3 convolution, no pool.
      "deep": three 3x3 convolutions, the first at stride 2 and half as wide as
        the last, and the max-pool (ResNet-D: "Bag of Tricks", Fig. 2b).
      "tiered": as "deep", with the first at 3/8 of the width (timm's "t").
      "deep_convolutional": as "deep", with a 3x3 convolution at stride 2 for a
        pool (ResNet-RS: Bello et al. 2021, section 4.1).
      "bit": as "imagenet", with zeros around the map that is pooled (BiT:
        Kolesnikov et al. 2020, arXiv:1912.11370).
    features: output channels.
    downsampling: what the max-pool is at stride 2: "stride": itself; "average":
      means of 2x2 in its place; "blur": itself at stride 1 and `blur_pool`;
      default "stride".
    pre_activation: whether BatchNorm and ReLU after the last convolution are
      left to the first block.
    space_to_depth: whether the 7x7 convolution is computed on 2x2 pixels as
      channels.
    layers: maker of the convolutions and norms.
  """

  kind: StemKind
  features: int
  downsampling: Downsampling = "stride"
  pre_activation: bool = False
  space_to_depth: bool = False
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b h3 w3 c2"]]:
    """Returns the map before the pool, and after it."""
    conv, last = self.layers.conv, "bn"

    def activate(x, name):
      return self.layers.norm(activate=True, name=name)(x, train=train)

    match self.kind:
      case "imagenet" | "bit":
        x = conv(
          self.features,
          7,
          2,
          conv_general_dilated=space_to_depth_conv
          if self.space_to_depth
          else None,
          name="conv",
        )(x)
      case "cifar":
        x = conv(self.features, 3, name="conv")(x)
      case "deep" | "tiered" | "deep_convolutional":
        first, second, _ = stem_widths(self.kind, self.features)
        x = activate(conv(first, 3, 2, name="conv1")(x), "bn1")
        x = activate(conv(second, 3, name="conv2")(x), "bn2")
        x = conv(self.features, 3, name="conv3")(x)
        last = "bn3"
    if not self.pre_activation:
      x = activate(x, last)

    if self.kind == "cifar":
      return x, x
    if self.kind == "deep_convolutional":
      pooled = conv(self.features, 3, 2, name="pool_conv")(x)
      return x, activate(pooled, "pool_bn")
    match self.downsampling:
      case "stride":
        return x, max_pool(x, border=0.0 if self.kind == "bit" else -math.inf)
      case "average":
        return x, average_pool(x, 2, ceil=False)
      case "blur":
        return x, blur_pool(max_pool(x, strides=1), 2)
