"""What is done to F(x) before it meets x: attention, stochastic depth."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_resnet.models.layers import at_least_float32, Layers


class SqueezeExcite(nn.Module):
  """Weighs each channel by what all channels say (Hu et al. 2018).

  Attributes:
    ratio: Width of the squeeze over that of the input: 1/16 in the paper, 1/4
      in ResNet-RS. It is rounded to a multiple of 8, as timm does.
    layers: How convolutions are made.
  """

  ratio: float = 1 / 16
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    channels = f.shape[-1]
    squeezed = max(8, int(channels * self.ratio + 4) // 8 * 8)
    conv = self.layers.conv
    s = f.astype(at_least_float32(f.dtype)).mean((1, 2), keepdims=True)
    s = nn.relu(conv(squeezed, 1, use_bias=True, name="fc1")(s))
    s = conv(channels, 1, use_bias=True, name="fc2")(s)
    return f * nn.sigmoid(s)


class StochasticDepth(nn.Module):
  """Drops F(x) of some examples in training (Huang et al. 2016).

  What is kept is divided by the probability to be kept, so that evaluation
  needs no factor.
  """

  @nn.compact
  def __call__(
    self,
    f: Float[Array, "b h w c"],
    rate: float | Float[Array, ""],
    *,
    train: bool,
  ) -> Float[Array, "b h w c"]:
    """Returns F(x), or 0 with probability `rate`; draws from "dropout"."""
    if not train or (isinstance(rate, float) and rate == 0):
      return f
    keep = jax.random.bernoulli(
      self.make_rng("dropout"), 1 - rate, (len(f), 1, 1, 1)
    )
    return jnp.where(keep, f / jnp.asarray(1 - rate, f.dtype), 0)
