"""How convolution, BatchNorm and max-pool are computed on each platform.

On GPU and TPU they are XLA's own. On CPU, where some of XLA's are many times
slower, another formulation of the same sum is taken: outputs and gradients are
equal to rounding. `benchmarks/train_step.py` measures both. A program that
trains on CPU should pass `compiler_options("cpu")` to its `jax.jit`, as
`training.steps` does.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jaxtyping import Array, Float

Pair = tuple[int, int]

# The layout of images, kernels and outputs.
_CANONICAL = ("NHWC", "HWIO", "NHWC")


def compiler_options(platform: str) -> dict[str, str]:
  """Returns `compiler_options` of `jax.jit` for a training step.

  Args:
    platform: name of a JAX backend: "cpu", "gpu", "tpu".
  """
  if platform != "cpu":
    return {}
  # XLA's CPU compiler drops optimization barriers before it fuses.
  options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
  if jax.__version_info__ < (0, 13):  # The latest that it was measured with.
    # YNNPACK's convolutions are slower than Eigen's (on 0.10, on one core).
    options["xla_cpu_experimental_ynn_fusion_type"] = (
      "LIBRARY_FUSION_TYPE_REDUCE"
    )
  return options


def conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "m n i f"],
  strides: Sequence[int],
  padding: Sequence[Sequence[int]],
  *,
  rhs_dilation: Sequence[int],
  feature_group_count: int,
  lhs_dilation: Sequence[int] = (1, 1),
  dimension_numbers: object = None,
  **others,
) -> Float[Array, "b h2 w2 f"]:
  """Returns `conv_general_dilated` of NHWC images, as `nn.Conv` calls it."""
  # There are no transposed convolutions, and no others than of NHWC.
  del lhs_dilation, dimension_numbers
  return _conv(
    x,
    kernel,
    strides=tuple(strides),
    padding=tuple(tuple(pair) for pair in padding),
    dilation=tuple(rhs_dilation),
    groups=feature_group_count,
    **others,
  )


# Jitted, so that a network that is run op by op compiles each once.
@functools.partial(
  jax.jit,
  inline=True,
  static_argnames=(
    "strides",
    "padding",
    "dilation",
    "groups",
    "precision",
  ),
)
def _conv(x, kernel, *, strides, padding, dilation, groups, **others):
  convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    feature_group_count=groups,
    **others,
  )
  plain = functools.partial(convolve, dimension_numbers=_CANONICAL)
  on_cpu: Callable[..., Array] = plain
  out = jax.eval_shape(plain, x, kernel).shape
  sides = zip(kernel.shape[:2], x.shape[1:3], out[1:3], strict=True)
  if groups == 1 and kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
    on_cpu = functools.partial(_as_dot, strides=strides)
  elif groups == 1 and any(size > min(side) for size, *side in sides):
    on_cpu = functools.partial(
      _by_patches,
      strides=strides,
      padding=padding,
      dilation=dilation,
      out=out,
    )
  elif groups == 1:
    on_cpu = functools.partial(_canonical, convolve)
  on_cpu = functools.partial(_between_barriers, on_cpu)
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _between_barriers(convolve, x, kernel):
  """Keeps what is around a convolution out of it.

  Its weight gradient reads x and dy in another order of the axes; without
  barriers XLA computes the BatchNorm and ReLU behind them once more, in that
  order, which took half of the time of a ResNet-20's step.
  """
  x = lax.optimization_barrier(x)
  return lax.optimization_barrier(convolve(x, kernel))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _canonical(convolve, x, kernel):
  """A convolution whose gradients are in canonical layout too.

  Elsewhere than at the top of a program (in a loop, in a called function) XLA's
  CPU compiler takes plain loops for any other layout, tens of times slower.
  """
  return convolve(x, kernel, dimension_numbers=_CANONICAL)


@functools.partial(_canonical.defjvp, symbolic_zeros=True)
def _canonical_jvp(convolve, primals, tangents):
  """Tangents in the layouts whose transposes, by JAX's rules, are canonical."""
  x, kernel = primals
  dx, dkernel = tangents
  parts = []
  if not isinstance(dx, SymbolicZero):
    swapped = kernel.transpose(0, 1, 3, 2)
    parts.append(
      convolve(dx, swapped, dimension_numbers=("NHWC", "HWOI", "NHWC"))
    )

  # Checkpointed, so that x is kept for the gradient, and not its transpose too.
  @jax.checkpoint
  def kernel_tangent(x, dkernel):
    dy = convolve(
      x.transpose(3, 1, 2, 0),
      dkernel.transpose(2, 0, 1, 3),
      dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    return dy.transpose(2, 0, 1, 3)

  if not isinstance(dkernel, SymbolicZero):
    parts.append(kernel_tangent(x, dkernel))
  y = _canonical(convolve, x, kernel)
  return y, functools.reduce(jnp.add, parts or [jnp.zeros_like(y)])


def _as_dot(x, kernel, *, strides: Pair):
  """Convolves by 1x1: every pixel times one matrix."""
  return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _by_patches(x, kernel, *, strides: Pair, padding, dilation: Pair, out):
  """Convolves a map smaller than the kernel, where XLA takes plain loops."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  height, width, channels, features = kernel.shape

  def under_tap(row, column):
    top, left = row * dilation[0], column * dilation[1]
    return x[
      :,
      top : top + (out[1] - 1) * strides[0] + 1 : strides[0],
      left : left + (out[2] - 1) * strides[1] + 1 : strides[1],
    ]

  patches = [under_tap(i, j) for i in range(height) for j in range(width)]
  matrix = kernel.reshape(height * width * channels, features)
  return jnp.concatenate(patches, -1) @ matrix


@functools.partial(jax.jit, static_argnums=3, inline=True)
def batch_norm(
  x: Float[Array, "g n h w c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  epsilon: float,
) -> tuple[
  Float[Array, "g n h w c"],
  Float[Array, "g 1 1 1 c"],
  Float[Array, "g 1 1 1 c"],
]:
  """Returns each of g groups normalized, and its mean and variance."""
  return _batch_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
  mean = x.mean((1, 2, 3), keepdims=True)
  var = jnp.square(x - mean).mean((1, 2, 3), keepdims=True)
  centered = x - _copies(mean)[0]
  factor = lax.rsqrt(var + epsilon) * by_channel(scale)
  y = centered * factor + by_channel(bias)
  return y, mean, var


@_batch_norm.defjvp
def _batch_norm_jvp(epsilon, primals, tangents):
  """Ioffe & Szegedy 2015, section 3, in few passes over memory.

  Its transpose has two sums over the batch, of the gradient and of the
  gradient times x - mean, and writes nothing but the result.
  """
  x, scale, _ = primals
  dx, dscale, dbias = tangents
  y, mean, var = _batch_norm(*primals, epsilon)
  inverse = lax.rsqrt(var + epsilon)
  _, first, second = _copies(mean)
  slope = ((x - first) * dx).mean((1, 2, 3), keepdims=True)
  dmean = dx.mean((1, 2, 3), keepdims=True)
  dfactor = inverse * by_channel(dscale)
  dfactor -= inverse**3 * by_channel(scale) * slope
  dcenter = inverse * by_channel(scale) * dmean
  dshift = by_channel(dbias) - dcenter
  dy = (inverse * by_channel(scale)) * dx + (x - second) * dfactor + dshift
  return (y, mean, var), (dy, dmean, 2 * slope)


def by_channel(x: Float[Array, " c"]) -> Float[Array, "1 1 1 1 c"]:
  """Returns a number a channel with the axes of groups of images."""
  return lax.expand_dims(x, (0, 1, 2, 3))


def _copies(x):
  """Returns x three times.

  On CPU, XLA does not see that the three are equal: it computes x - mean anew
  wherever it is used, instead of writing it to memory once for all.
  """

  def behind_barriers(x):
    first = lax.optimization_barrier(x)
    second = lax.optimization_barrier(first)
    return first, second, lax.optimization_barrier(second)

  return lax.platform_dependent(
    x, cpu=behind_barriers, default=lambda x: (x, x, x)
  )


@functools.partial(jax.jit, inline=True)
def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Returns 3x3 maxima at stride 2, padded by 1: the pool of the stem."""
  return lax.platform_dependent(x, cpu=_max_pool_by_pairs, default=_max_pool)


def _max_pool(x):
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    window_dimensions=(1, 3, 3, 1),
    window_strides=(1, 2, 2, 1),
    padding=((0, 0), (1, 1), (1, 1), (0, 0)),
  )


def _max_pool_by_pairs(x):
  """Takes maxima of three columns, then of three rows.

  The gradient of `reduce_window`, select-and-scatter, is slow on CPU. As there,
  the first of equal numbers, row by row, gets the gradient.
  """
  border = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, border, constant_values=-jnp.inf)
  for axis in (2, 1):
    last = x.shape[axis] - 2
    shifted = [
      lax.slice_in_dim(x, start, last + start, 2, axis) for start in range(3)
    ]
    x = functools.reduce(_first_of_greatest, shifted)
  return x


def _first_of_greatest(a, b):
  return jnp.where((a >= b) | jnp.isnan(a), a, b)
