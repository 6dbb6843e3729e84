"""The layers of a residual network, as the papers define them.

Paddings are explicit everywhere: XLA's "SAME" pads a stride-2 convolution by
(0, 1) where Caffe and PyTorch pad by (1, 1), and the outputs drift at even
sizes only.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models import cpu

# Normal with variance 2 / fan-out: He et al. 2015, "Delving Deep into
# Rectifiers", eq. 14; the mode that fb.resnet.torch and torchvision use.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
  """Returns the dtype for statistics and logits of a network in `dtype`."""
  return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nn.Module):
  """Batch normalization over groups of examples (Ioffe & Szegedy 2015).

  Statistics are computed in float32 or better, whatever the dtype of `x`. The
  running variance keeps the unbiased estimate, m / (m - 1) times the batch
  variance, as in Algorithm 2 of the paper and in PyTorch; with groups, the
  running statistics follow the mean over the groups.

  Attributes:
    group_size: number of examples, in batch order, that are normalized
      together; None for the whole batch. The result does not depend on how the
      batch is laid out over devices.
    momentum: share of the old running statistics that an update keeps, in
      [0, 1]; default 0.9 (PyTorch's 0.1).
    epsilon: number that is added to the variance; default 1e-5.
    dtype: dtype of the output.
    param_dtype: dtype of `scale` and `bias`.
    scale_init: initializer of `scale`.

  Raises:
    ValueError: in training, if the batch is not divisible by `group_size`.
  """

  group_size: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h w c"]:
    channels = x.shape[-1]
    stats_dtype = at_least_float32(self.param_dtype)
    scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, (channels,), self.param_dtype
    )
    running_mean = self.variable(
      "batch_stats", "mean", jnp.zeros, (channels,), stats_dtype
    )
    running_var = self.variable(
      "batch_stats", "var", jnp.ones, (channels,), stats_dtype
    )
    grouped = self._split(x) if train else x[None]
    grouped = grouped.astype(at_least_float32(x.dtype))
    if train:
      y, mean, var = cpu.batch_norm(grouped, scale, bias, self.epsilon)
      if not self.is_initializing():
        count = grouped[0].size // channels
        unbiased = var * (count / max(count - 1, 1))
        running_mean.value = self._update(running_mean.value, mean)
        running_var.value = self._update(running_var.value, unbiased)
    else:
      inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
      centered = grouped - cpu.by_channel(running_mean.value)
      y = centered * cpu.by_channel(inverse * scale) + cpu.by_channel(bias)
    return y.astype(self.dtype).reshape(x.shape)

  def _split(self, x: Array) -> Array:
    """Returns x as [groups, group_size, h, w, c]."""
    size = self.group_size or len(x)
    if len(x) % size:
      raise ValueError(
        f"a batch of {len(x)} examples cannot be normalized in groups of "
        f"{size}: choose a norm_group_size that divides the batch size"
      )
    return x.reshape(len(x) // size, size, *x.shape[1:])

  def _update(self, running: Array, groups: Array) -> Array:
    new = groups.mean((0, 1, 2, 3)).astype(running.dtype)
    return self.momentum * running + (1 - self.momentum) * new


@dataclasses.dataclass(frozen=True)
class Layers:
  """The maker of every convolution and norm of a network.

  The network hands one to each of its blocks, so that a block names nothing but
  the features, kernels and strides of its layers.

  Attributes:
    batch_norm: whether there is BatchNorm; else every convolution has a bias.
    norm_group_size: `group_size` of every BatchNorm.
    dtype: dtype of the computation; statistics stay in float32 or better.
    param_dtype: dtype of the parameters.
  """

  batch_norm: bool = True
  norm_group_size: int | None = None
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
    return nn.Conv(
      features,
      (kernel_size, kernel_size),
      strides=strides,
      padding=dilation * (kernel_size - 1) // 2,
      kernel_dilation=dilation,
      feature_group_count=groups,
      use_bias=use_bias or not self.batch_norm,
      kernel_init=nn.initializers.zeros if zero_init else he_normal,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      conv_general_dilated=conv_general_dilated or cpu.conv,
      name=name,
    )

  def norm(
    self, *, zero_init: bool = False, name: str | None = None
  ) -> Callable[..., Array]:
    """Returns a BatchNorm; `zero_init` starts its scale at 0 instead of 1."""
    if not self.batch_norm:
      return lambda x, *, train: x
    init = nn.initializers
    return BatchNorm(
      group_size=self.norm_group_size,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      scale_init=init.zeros if zero_init else init.ones,
      name=name,
    )


def average_pool(
  x: Float[Array, "b h w c"], strides: int
) -> Float[Array, "b h2 w2 c"]:
  """Returns means of 2x2, ceil(side / strides) of them: ResNet-D's pool.

  At stride 2 a window that hangs over the edge takes the mean of the pixels it
  covers; at stride 1, in a dilated network, it counts zeros. Both as in timm.
  """
  height, width = x.shape[1:3]
  padding: Any = tuple(
    (0, -(-side // strides) * strides + 2 - strides - side)
    for side in (height, width)
  )
  return nn.avg_pool(
    x,
    window_shape=(2, 2),
    strides=(strides, strides),
    padding=padding,
    count_include_pad=strides == 1,
  )


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


class SqueezeExcite(nn.Module):
  """Channel attention: squeeze-and-excitation (Hu et al. 2018).

  Attributes:
    ratio: width of the squeeze over that of the input: 1/16 in the paper, 1/4
      in ResNet-RS. It is rounded to a multiple of 8, as timm does.
    layers: maker of the convolutions.
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
      self.make_rng("dropout"), 1 - rate, (len(f), 1, 1, 1)
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
    squeeze_ratio: `ratio` of a `SqueezeExcite` at the end of F(x), or None.
    layers: maker of the convolutions and norms.
  """

  features: int
  strides: int = 1
  dilations: tuple[int, int] = (1, 1)
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  squeeze_ratio: float | None = None
  layers: Layers = Layers()

  # Output channels over `features`; whether BatchNorm and ReLU come before the
  # convolutions.
  expansion: ClassVar[int]
  pre_activation: ClassVar[bool] = False

  def squeeze_and_drop(
    self, f: Array, drop_rate: float | Array, *, train: bool
  ) -> Array:
    """Returns F(x) as it goes into the sum."""
    if self.squeeze_ratio is not None:
      f = SqueezeExcite(self.squeeze_ratio, self.layers, name="se")(f)
    return StochasticDepth(name="drop")(f, drop_rate, train=train)

  @property
  def shortcut_options(self) -> dict[str, Any]:
    """The fields of `Shortcut` that follow from those of the block."""
    return {
      "kind": self.shortcut,
      "strides": self.strides,
      "dilation": self.dilations[1],
      "layers": self.layers,
    }
