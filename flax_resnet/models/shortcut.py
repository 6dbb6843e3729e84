"""The x of H(x) = F(x) + x."""

import functools

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_resnet.models.layers import average_pool, Layers

SHORTCUTS = (
  "identity",
  "projection",
  "projection_all",
  "pooled",
  "conv",
  "none",
)


class Shortcut(nn.Module):
  """The x of F(x) + x, fitted to the shape of F(x) (sections 3.3 and 4.1).

  Attributes:
    kind: One of
      "identity": x itself; where the shape changes, every `strides`-th pixel,
        with zero channels on both sides. No parameters (option A).
      "projection": where the shape changes, a 1x1 convolution and BatchNorm;
        else x itself (option B).
      "projection_all": the projection in every block (option C).
      "pooled": as "projection", but a 2x2 average pool takes the stride
        (ResNet-D: He et al. 2018, "Bag of Tricks", Fig. 2c).
      "conv": a 1x1 convolution with bias and without BatchNorm in every block.
      "none": nothing is added; the net is a plain one.
    features: Channels of F(x).
    strides: By which F(x) is smaller than x.
    dilation: Of the stage; above 1, "pooled" pools at stride 1 where the stage
      would have had a stride.
    layers: How convolutions and norms are made.

  Raises:
    ValueError: For another `kind`, or when the identity would have to drop
      channels.
  """

  kind: str
  features: int
  strides: int = 1
  dilation: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    activated: Float[Array, "b h w c"] | None = None,
    *,
    train: bool,
  ) -> Float[Array, "b h2 w2 c2"] | float:
    """Returns what is added to F(x).

    Args:
      x: Input of the block.
      activated: BatchNorm and ReLU of x, in a pre-activation block: what its
        convolutions see, those of the shortcut too, which then have no
        BatchNorm of their own (He et al. 2016, resnet-1k-layers).
      train: See `ResNet`.
    """
    fits = self.strides == 1 and x.shape[-1] == self.features
    source = x if activated is None else activated
    conv = functools.partial(self.layers.conv, self.features, 1, name="conv")

    def projected(y, strides):
      y = conv(strides)(y)
      if activated is None:
        y = self.layers.norm(name="bn")(y, train=train)
      return y

    match self.kind:
      case "identity":
        return x if fits else _pad(x, self.features, self.strides)
      case "projection" | "pooled" if fits:
        return x
      case "projection" | "projection_all":
        return projected(source, self.strides)
      case "pooled":
        if self.strides > 1 or self.dilation > 1:
          source = average_pool(source, self.strides)
        return projected(source, 1)
      case "conv":
        return conv(self.strides, use_bias=True)(source)
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
