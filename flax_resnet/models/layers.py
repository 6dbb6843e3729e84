"""Convolution, BatchNorm and pooling as the papers define them.

Paddings are explicit everywhere: XLA's "SAME" pads a stride-2 convolution by
(0, 1) where Caffe and PyTorch pad by (1, 1), and the outputs drift at even
sizes only.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models import operations

# Normal with variance 2 / fan-out: He et al. 2015, "Delving Deep into
# Rectifiers", eq. 14; the mode that fb.resnet.torch and torchvision use.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
  """The dtype for statistics and logits of a network computed in `dtype`."""
  return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nn.Module):
  """Batch normalisation over groups of examples (Ioffe & Szegedy 2015).

  Statistics are computed in float32 or better, whatever the dtype of `x`. The
  running variance keeps the unbiased estimate, m / (m - 1) times the batch
  variance, as in Algorithm 2 of the paper and in PyTorch; with groups, the
  running statistics follow the mean over the groups.

  Attributes:
    group_size: How many examples, in batch order, are normalised together;
      None for the whole batch. The result does not depend on how the batch is
      laid out over devices.
    momentum: Share of the old running statistics that an update keeps.
    epsilon: Added to the variance.
    dtype: Of the output.
    param_dtype: Of `scale` and `bias`.
    scale_init: Initialiser of `scale`.

  Raises:
    ValueError: In training, when the batch is not divisible by `group_size`.
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
      y, mean, var = operations.batch_norm(grouped, scale, bias, self.epsilon)
      if not self.is_initializing():
        count = grouped[0].size // channels
        unbiased = var * (count / max(count - 1, 1))
        running_mean.value = self._update(running_mean.value, mean)
        running_var.value = self._update(running_var.value, unbiased)
    else:
      inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
      y = (grouped - running_mean.value) * (inverse * scale) + bias
    return y.astype(self.dtype).reshape(x.shape)

  def _split(self, x: Array) -> Array:
    """[b, h, w, c] -> [groups, group_size, h, w, c]."""
    size = self.group_size or len(x)
    if len(x) % size:
      raise ValueError(
        f"a batch of {len(x)} examples cannot be normalised in groups of "
        f"{size}: choose a norm_group_size that divides the batch size"
      )
    return x.reshape(len(x) // size, size, *x.shape[1:])

  def _update(self, running: Array, groups: Array) -> Array:
    new = groups.mean((0, 1, 2, 3)).astype(running.dtype)
    return self.momentum * running + (1 - self.momentum) * new


@dataclasses.dataclass(frozen=True)
class Layers:
  """How every convolution and norm of a network is made.

  One object, handed from the network to its blocks, so that a block says only
  what is its own.

  Attributes:
    batch_norm: Whether there is any; else every convolution has a bias.
    norm_group_size: See `BatchNorm.group_size`.
    dtype: What is computed in; statistics stay in float32 or better.
    param_dtype: What parameters are kept in.
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
    """A square convolution, padded alike on every side; see `nn.Conv`."""
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
      conv_general_dilated=conv_general_dilated or operations.conv,
      name=name,
    )

  def norm(
    self, *, zero_init: bool = False, name: str | None = None
  ) -> Callable[..., Array]:
    """A `BatchNorm`; `zero_init` starts its scale at 0 instead of 1."""
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
  """2x2 mean that keeps ceil(side / strides): the pool of ResNet-D's shortcut.

  At stride 2 a window that hangs over the edge takes the mean of what it
  covers; at stride 1, in a dilated network, it counts zeros. Both are what
  timm does.
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
  """The 7x7 convolution at stride 2, as a 4x4 one on 2x2 pixels as channels.

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
