"""The norms of a residual network, and the activations that belong to them."""

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models import cpu

NormKind = Literal["batch", "group", "evonorm", "filter_response", "none"]


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
  """Returns the dtype for statistics and logits of a network in `dtype`."""
  # `promote_types` would obey `jax.numpy_dtype_promotion` of the caller.
  wide = jnp.finfo(dtype).bits >= 32
  return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


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
    size = self.group_size or x.shape[0]
    if self.group_size and x.shape[0] % size:
      raise ValueError(
        f"a batch of {x.shape[0]} examples cannot be normalized in groups of "
        f"{size}: choose a norm_group_size that divides the batch size"
      )
    groups = x.shape[0] // size if self.group_size else 1
    return x.reshape(groups, size, *x.shape[1:])

  def _update(self, running: Array, groups: Array) -> Array:
    new = groups.mean((0, 1, 2, 3)).astype(running.dtype)
    return self.momentum * running + (1 - self.momentum) * new


class _ChannelNorm(nn.Module):
  """The fields of the norms that keep no statistics, and their scale and bias.

  Attributes:
    epsilon: number that is added to the variance; default 1e-5.
    dtype: dtype of the output.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
  """

  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  def by_channel(
    self, name: str, init: nn.initializers.Initializer, channels: int
  ) -> Float[Array, "1 1 1 c"]:
    """Returns a parameter of one number a channel."""
    values = self.param(name, init, (channels,), self.param_dtype)
    return values[None, None, None]

  def scaled(self, y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns scale times y plus bias."""
    scale = self.by_channel("scale", self.scale_init, y.shape[-1])
    return y * scale + self.by_channel(
      "bias", nn.initializers.zeros, y.shape[-1]
    )


class GroupNorm(_ChannelNorm):
  """(x - mean) / sqrt(var + epsilon) scale + bias, by groups of channels.

  Mean and variance are those of one example over height, width and a group of
  neighbouring channels (Wu & He 2018, arXiv:1803.08494).
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h w c"]:
    del train  # The same in both.
    wide = x.astype(at_least_float32(x.dtype))
    centered = wide - _group_means(wide)
    var = _group_means(jnp.square(centered))
    y = self.scaled(centered * jax.lax.rsqrt(var + self.epsilon))
    return y.astype(self.dtype)


class EvoNorm(_ChannelNorm):
  """x sigmoid(v x) / sqrt(var + epsilon) scale + bias: EvoNorm-S0.

  The variance is that of `GroupNorm` (Liu et al. 2020, arXiv:2004.02967, Table
  3).

  Attributes:
    activate: whether the activation is part of it; else, behind the last
      convolution of F(x), only scale and bias are, as in timm.
  """

  activate: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h w c"]:
    del train
    wide = x.astype(at_least_float32(x.dtype))
    if self.activate:
      v = self.by_channel("v", nn.initializers.ones, x.shape[-1])
      var = _group_means(jnp.square(wide - _group_means(wide)))
      wide = wide * nn.sigmoid(v * wide) * jax.lax.rsqrt(var + self.epsilon)
    return self.scaled(wide).astype(self.dtype)


class FilterResponseNorm(_ChannelNorm):
  """max(x / sqrt(mean(x^2) + epsilon) scale + bias, tau).

  The mean is that of one channel of one example over height and width (Singh &
  Krishnan 2019, arXiv:1911.09737).

  Attributes:
    activate: whether the activation, the maximum, is part of it.
  """

  activate: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h w c"]:
    del train
    wide = x.astype(at_least_float32(x.dtype))
    power = jnp.square(wide).mean((1, 2), keepdims=True)
    y = self.scaled(wide * jax.lax.rsqrt(power + self.epsilon))
    if self.activate:
      y = jnp.maximum(
        y, self.by_channel("tau", nn.initializers.zeros, x.shape[-1])
      )
    return y.astype(self.dtype)


GROUPS = 32  # Of channels, as in the papers and in timm.


def _group_means(x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
  """Returns the mean of the group that each channel belongs to."""
  b, *_, channels = x.shape
  if channels % GROUPS:
    raise ValueError(
      f"{channels} channels cannot be normalized in {GROUPS} groups: use "
      f'norm="batch", or widths that are multiples of {GROUPS}'
    )
  # By channel first: no array of the size of the map changes its layout.
  means = x.mean((1, 2)).reshape(b, GROUPS, channels // GROUPS)
  of_groups = means.mean(-1, keepdims=True)
  of_channels = jnp.broadcast_to(of_groups, means.shape).reshape(b, channels)
  return of_channels[:, None, None]


# The modules by their kind.
NORMS = {
  "batch": BatchNorm,
  "group": GroupNorm,
  "evonorm": EvoNorm,
  "filter_response": FilterResponseNorm,
}
