"""The layers of a residual network, as the papers define them.

Paddings are explicit everywhere: XLA's "SAME" pads a stride-2 convolution by
(0, 1) where Caffe and PyTorch pad by (1, 1), and the outputs drift at even
sizes only.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models import cpu
from flax_resnet.models.norms import at_least_float32, NormKind, NORMS

# Normal with variance 2 / fan-out: He et al. 2015, "Delving Deep into
# Rectifiers", eq. 14; the mode that fb.resnet.torch and torchvision use.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Layers:
  """The maker of every convolution and norm of a network.

  The network hands one to each of its blocks, so that a block names nothing but
  the features, kernels and strides of its layers.

  Attributes:
    norm_kind: kind of the norms, see `ResNet`; with "none" every convolution
      has a bias.
    norm_group_size: `group_size` of every BatchNorm.
    weight_standardization: whether kernels are standardized, see
      `standardized`.
    dtype: dtype of the computation; statistics stay in float32 or better.
    param_dtype: dtype of the parameters.
  """

  norm_kind: NormKind = "batch"
  norm_group_size: int | None = None
  weight_standardization: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def conv(
    self,
    features: int,
    kernel_size: int,
    strides: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    zero_init: bool = False,
    conv_general_dilated: Callable[..., Array] | None = None,
    name: str | None = None,
  ) -> nn.Conv:
    """Returns a square convolution, padded alike on every side."""
    convolve = conv_general_dilated or cpu.conv
    if self.weight_standardization:
      convolve = functools.partial(standardized, convolve)
    return nn.Conv(
      features,
      (kernel_size, kernel_size),
      strides=strides,
      padding=dilation * (kernel_size - 1) // 2,
      kernel_dilation=dilation,
      feature_group_count=groups,
      use_bias=use_bias or self.norm_kind == "none",
      kernel_init=nn.initializers.zeros if zero_init else he_normal,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      conv_general_dilated=convolve,
      name=name,
    )

  def norm(
    self,
    *,
    activate: bool = False,
    zero_init: bool = False,
    name: str | None = None,
  ) -> Callable[..., Array]:
    """Returns a norm as a function of x and `train`.

    Args:
      activate: whether its activation follows: ReLU, if it has no other.
      zero_init: whether its scale starts at 0 instead of 1.
      name: name of its parameters.
    """
    if self.norm_kind == "none":
      return lambda x, *, train: nn.relu(x) if activate else x
    options: dict[str, Any] = {}
    if self.norm_kind == "batch":
      options["group_size"] = self.norm_group_size
    elif self.norm_kind != "group":
      options["activate"] = activate
    init = nn.initializers
    norm = NORMS[self.norm_kind](
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      scale_init=init.zeros if zero_init else init.ones,
      name=name,
      **options,
    )
    if not activate or "activate" in options:
      return norm
    return lambda x, *, train: nn.relu(norm(x, train=train))


def standardized(
  convolve: Callable[..., Array],
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "m n i f"],
  *options: Any,
  **others: Any,
) -> Float[Array, "b h2 w2 f"]:
  """Convolves by (kernel - mean) / sqrt(var + 1e-8): weight standardization.

  Mean and variance are those of the weights of one output (Qiao et al. 2019,
  arXiv:1903.10520; the epsilon is BiT's).
  """
  wide = kernel.astype(at_least_float32(kernel.dtype))
  centered = wide - wide.mean((0, 1, 2), keepdims=True)
  var = jnp.square(centered).mean((0, 1, 2), keepdims=True)
  kernel = (centered * jax.lax.rsqrt(var + 1e-8)).astype(kernel.dtype)
  return convolve(x, kernel, *options, **others)


def space_to_depth_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "7 7 c f"], *_, **__
) -> Float[Array, "b h2 w2 f"]:
  """Returns the 7x7 convolution at stride 2, as 4x4 on 2x2 pixels as channels.

  Same kernel, same output; 12 channels instead of 3 fill a TPU's or a tensor
  core's lanes better (Ying et al. 2018, "Image Classification at Supercomputer
  Scale", section 2). Takes the place of `jax.lax.conv_general_dilated`.
  """
  b, height, width, c = x.shape
  h, w = -(-height // 2), -(-width // 2)
  x = jnp.pad(
    x, ((0, 0), (3, 2 * h + 3 - height), (3, 2 * w + 3 - width), (0, 0))
  )
  x = x.reshape(b, h + 3, 2, w + 3, 2, c).transpose(0, 1, 3, 2, 4, 5)
  # An eighth row and column of zeros make whole blocks of 2x2.
  kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
  kernel = kernel.reshape(4, 2, 4, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
  return jax.lax.conv_general_dilated(
    x.reshape(b, h + 3, w + 3, 4 * c),
    kernel.reshape(4, 4, 4 * c, -1),
    window_strides=(1, 1),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


class StochasticDepth(nn.Module):
  """Drops F(x) of some examples in training (Huang et al. 2016).

  The others are divided by the probability to be kept, so that evaluation needs
  no factor.
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
      self.make_rng("dropout"), 1 - rate, (f.shape[0], 1, 1, 1)
    )
    return jnp.where(keep, f / jnp.asarray(1 - rate, f.dtype), 0)


class ResidualBlock(nn.Module):
  """The fields that all residual blocks have, and the end of their F(x).

  Attributes:
    features: channels, see the block.
    strides: ratio of the height of x to that of the output; default 1.
    dilations: dilations of the convolutions before and after the one that has,
      or in a dilated network would have, the stride; default (1, 1).
    shortcut: kind of the shortcut, see `Shortcut`; default "projection".
    use_bias: whether convolutions have a bias, which BatchNorm makes redundant.
    zero_init_residual: whether the last scale of F(x), or in a pre-activation
      block the last kernel, starts at 0, so that the block starts as its
      shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    attention: class of the channel attention at the end of F(x), see
      `attention.py`, or a `functools.partial` of it; None for none.
    layers: maker of the convolutions and norms.
  """

  features: int
  strides: int = 1
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  attention: Callable[..., nn.Module] | None = None
  layers: Layers = Layers()

  # Output channels over `features`; whether BatchNorm and ReLU come before the
  # convolutions.
  expansion: ClassVar[int]
  pre_activation: ClassVar[bool] = False

  def attend_and_drop(
    self, f: Array, drop_rate: float | Array, *, train: bool
  ) -> Array:
    """Returns F(x) as it goes into the sum."""
    if self.attention is not None:
      channels = self.features * self.expansion
      layers = dataclasses.replace(self.layers, weight_standardization=False)
      f = self.attention(channels=channels, layers=layers, name="se")(f)
    return StochasticDepth(name="drop")(f, drop_rate, train=train)

  @property
  def shortcut_options(self) -> dict[str, Any]:
    """The fields of `Shortcut` that follow from those of the block."""
    return {
      "kind": self.shortcut,
      "strides": self.strides,
      "dilations": self.dilations,
      "layers": self.layers,
    }
