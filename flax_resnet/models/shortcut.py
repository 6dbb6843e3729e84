"""The x of H(x) = F(x) + x."""

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_resnet.models.layers import Layers
from flax_resnet.models.pools import average_pool

ShortcutKind = Literal[
  "identity",
  "projection",
  "projection_all",
  "projection_3x3",
  "pooled",
  "conv",
  "none",
]


class Shortcut(nn.Module):
  """The x of F(x) + x, fitted to the shape of F(x) (sections 3.3 and 4.1).

  Attributes:
    projection: function from a stride (and other arguments of `Layers.conv`) to
      the 1x1 convolution that has the channels of F(x).
    kind: one of
      "identity": x itself; where the shape changes, every `strides`-th pixel,
        with zero channels on both sides. No parameters (option A).
      "projection": where the shape changes, a 1x1 convolution and BatchNorm;
        else x itself (option B).
      "projection_all": the projection in every block (option C).
      "projection_3x3": as "projection", with a 3x3 convolution where there is a
        stride (SENet-154: Hu et al. 2018, appendix).
      "pooled": as "projection", but a 2x2 average pool takes the stride
        (ResNet-D: He et al. 2018, "Bag of Tricks", arXiv:1812.01187, Fig. 2c).
      "conv": a 1x1 convolution with bias and without BatchNorm in every block.
      "none": nothing is added; the net is a plain one.
    strides: ratio of the height of x to that of F(x); default 1.
    dilations: see `ResidualBlock`; where the second is above 1, "pooled" pools
      at stride 1 in the place of a stride, and "projection_3x3" has the first.
    layers: maker of the norm.

  Raises:
    ValueError: for an identity that would have to drop channels.
  """

  projection: Callable[..., nn.Module]
  kind: ShortcutKind = "projection"
  strides: int = 1
  dilations: tuple[int, int] = (1, 1)
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    shape: tuple[Any, ...],
    *,
    activated: Float[Array, "b h w c"] | None = None,
    train: bool,
  ) -> Float[Array, "b h2 w2 c2"] | float:
    """Returns x in the shape of F(x); 0 in a plain net.

    Args:
      x: input of the block.
      shape: shape of F(x), [b, h2, w2, c2]; under `jax.export` b is a symbol.
      activated: ReLU of BatchNorm of x, in a pre-activation block: the input of
        its convolutions, that of the shortcut too, which then has no BatchNorm
        of its own (He et al. 2016, resnet-1k-layers).
      train: as in `ResNet`.
    """
    source = x if activated is None else activated

    def projected(source, strides, **kernel):
      y = self.projection(strides=strides, name="conv", **kernel)(source)
      if activated is None:
        y = self.layers.norm(name="bn")(y, train=train)
      return y

    fits = self.strides == 1 and x.shape[-1] == shape[-1]
    halves = self.strides > 1 or self.dilations[1] > 1
    match self.kind:
      case "identity":
        return x if fits else _pad_channels(x, shape[-1], self.strides)
      case "projection" | "projection_3x3" | "pooled" if fits:
        return x
      case "projection" | "projection_all":
        return projected(source, self.strides)
      case "projection_3x3":
        kernel = {"kernel_size": 3, "dilation": self.dilations[0]}
        return projected(source, self.strides, **kernel if halves else {})
      case "pooled":
        if halves:
          source = average_pool(source, self.strides)
        return projected(source, 1)
      case "conv":
        conv = self.projection(strides=self.strides, use_bias=True, name="conv")
        return conv(source)
      case "none":
        return 0.0


def _pad_channels(x: Array, features: int, strides: int) -> Array:
  """Subsamples x and adds zero channels, half of them on each side."""
  missing = features - x.shape[-1]
  if missing < 0:
    raise ValueError(
      f"an identity shortcut cannot go from {x.shape[-1]} to {features} "
      'channels: use shortcut="projection"'
    )
  channels = (missing // 2, missing - missing // 2)
  if strides > 1:
    # x[:, ::strides, ::strides], which would be a gather in `jax.export`.
    x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, strides, strides, 1))
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), channels))
