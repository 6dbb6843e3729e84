"""What comes before the blocks."""

from flax import linen as nn
from jaxtyping import Array, Float

from flax_resnet.models.layers import Layers, space_to_depth_conv
from flax_resnet.models.operations import max_pool

STEMS = ("imagenet", "cifar", "deep", "deep_convolutional")


class Stem(nn.Module):
  """The first convolutions, and the pool after them.

  Attributes:
    kind: One of
      "imagenet": a 7x7 convolution at stride 2, a 3x3 max-pool at stride 2.
      "cifar": a 3x3 convolution, no pool.
      "deep": three 3x3 convolutions, the first at stride 2 and half as wide as
        the last, and the max-pool (ResNet-D: "Bag of Tricks", Fig. 2b).
      "deep_convolutional": as "deep", with a 3x3 convolution at stride 2 for a
        pool (ResNet-RS: Bello et al. 2021, section 4.1).
    features: Output channels.
    pre_activation: Leave BatchNorm and ReLU after the last convolution to the
      first block.
    space_to_depth: Compute the 7x7 convolution on 2x2 pixels as channels.
    layers: How convolutions and norms are made.
  """

  kind: str
  features: int
  pre_activation: bool = False
  space_to_depth: bool = False
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b h3 w3 c2"]]:
    """Returns the map before the pool, and after it."""
    conv = self.layers.conv

    def activate(x, name):
      return nn.relu(self.layers.norm(name=name)(x, train=train))

    match self.kind:
      case "imagenet":
        x = conv(
          self.features,
          7,
          2,
          conv_general_dilated=space_to_depth_conv
          if self.space_to_depth
          else None,
          name="conv",
        )(x)
        last = "bn"
      case "cifar":
        x = conv(self.features, 3, name="conv")(x)
        last = "bn"
      case "deep" | "deep_convolutional":
        x = activate(conv(self.features // 2, 3, 2, name="conv1")(x), "bn1")
        x = activate(conv(self.features // 2, 3, name="conv2")(x), "bn2")
        x = conv(self.features, 3, name="conv3")(x)
        last = "bn3"
      case _:
        raise ValueError(
          f"unknown stem {self.kind!r}: use one of {', '.join(STEMS)}"
        )
    if not self.pre_activation:
      x = activate(x, last)

    if self.kind == "cifar":
      return x, x
    if self.kind == "deep_convolutional":
      pooled = conv(self.features, 3, 2, name="pool_conv")(x)
      return x, activate(pooled, "pool_bn")
    return x, max_pool(x)
