"""How convolution, BatchNorm and max-pool are computed on each platform.

On GPU and TPU they are XLA's own. On CPU, where some of XLA's are many times
slower, another formulation of the same sum is taken: outputs and gradients are
equal to rounding, and `jax.jit` needs no options. docs/cpu.md says why each is
as it is; `benchmarks/train_step.py` measures them.
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Pair = tuple[int, int]

# The layout of images, kernels and outputs.
_CANONICAL = ("NHWC", "HWIO", "NHWC")
_MOST_CHANNELS_OF_EIGEN = 16  # More are YNNPACK's, in JAX 0.10 and 0.12.
_BLOCK = 32  # Channels of the dense convolutions that a grouped one becomes.


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
  window = {"strides": strides, "padding": padding, "dilation": dilation}
  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    feature_group_count=groups,
    dimension_numbers=_CANONICAL,
    **others,
  )
  out = jax.eval_shape(plain, x, kernel).shape
  sides = zip(kernel.shape[:2], x.shape[1:3], out[1:3], strict=True)
  # Of an open size, as exported programs may have, too little is known.
  if not all(isinstance(side, int) for side in x.shape[1:3]):
    return plain(x, kernel)
  if any(size > min(side) for size, *side in sides):
    on_cpu = _as_call(functools.partial(_by_patches, out=out, **window))
  else:
    on_cpu = functools.partial(_dense, **window, **others)
  if groups > 1:
    on_cpu = functools.partial(_grouped, on_cpu, groups)
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _as_call(function):
  """Returns a function that stays a call in the compiled program.

  XLA's default pipeline inlines calls and drops optimization barriers before
  it fuses; this attribute it keeps, and nothing is fused across such a call.
  Otherwise, as a weight gradient reads x and dy in another order of the axes,
  it computes the BatchNorm and ReLU behind them once more, in that order, which
  took half of the time of a ResNet-20's step. (The attribute reaches the calls
  within: `jnp.pad` would become one of its own.)
  """

  @functools.wraps(function)
  def call(*arrays):
    with set_xla_metadata(inlineable="false"):
      return jax.jit(function)(*arrays)

  return call


def _dense(x, kernel, *, strides: Pair, padding, dilation: Pair, **others):
  """A convolution in the form that Eigen computes on all cores.

  XLA hands convolutions of more than 16 channels to YNNPACK, which computes
  them on one core, unless the image is dilated. So image and kernel are dilated
  by 2 along the rows, at twice the stride and the padding: the same sum.
  """
  rows, columns = padding

  def convolve(x, kernel, times, layout=_CANONICAL):
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(times * strides[0], strides[1]),
      padding=(tuple(times * n for n in rows), columns),
      lhs_dilation=(times, 1),
      rhs_dilation=(times * dilation[0], dilation[1]),
      dimension_numbers=layout,
      **others,
    )

  # Dilated, the 7x7 stem takes longer than by YNNPACK, and so does what is
  # dilated already: the image's gradient of a strided convolution.
  stem = kernel.shape[0] > 3 and kernel.shape[2] <= 3
  few = stem or max(kernel.shape[2:]) <= _MOST_CHANNELS_OF_EIGEN
  output = functools.partial(convolve, times=1 if few else 2)
  image_tangent = functools.partial(
    convolve,
    times=1 if few or max(strides) > 1 else 2,
    layout=("NHWC", "HWOI", "NHWC"),
  )
  if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
    kernel_tangent = functools.partial(_pointwise_kernel_tangent, strides)
  else:
    # There the examples are the channels.
    kernel_tangent = functools.partial(
      _kernel_tangent,
      functools.partial(convolve, times=2, layout=("CHWN", "IHWO", "HWNC")),
    )
  return _with_gradients(output, image_tangent, kernel_tangent, x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _with_gradients(output, image_tangent, kernel_tangent, x, kernel):
  """A convolution whose gradients are in canonical layout too.

  Elsewhere than at the top of a program (in a loop, in a called function) XLA's
  CPU compiler takes plain loops for any other layout, tens of times slower.
  """
  del image_tangent, kernel_tangent
  return output(x, kernel)


@functools.partial(_with_gradients.defjvp, symbolic_zeros=True)
def _with_gradients_jvp(
  output, image_tangent, kernel_tangent, primals, tangents
):
  """Tangents in the layouts whose transposes, by JAX's rules, are canonical."""
  x, kernel = primals
  dx, dkernel = tangents

  parts = []
  if not isinstance(dx, SymbolicZero):
    parts.append(image_tangent(dx, kernel.transpose(0, 1, 3, 2)))
  if not isinstance(dkernel, SymbolicZero):
    # Checkpointed, so that x is kept for the gradient and not its transpose,
    # which is computed within the call.
    tangent = jax.checkpoint(kernel_tangent, prevent_cse=False)
    parts.append(_as_call(tangent)(x, dkernel))
  y = _with_gradients(output, image_tangent, kernel_tangent, x, kernel)
  parts = [_sharded_like(y, part) for part in parts or [jnp.zeros_like(y)]]
  return y, functools.reduce(jnp.add, parts)


def _sharded_like(y, tangent):
  """Returns the tangent of y split over the devices as y is.

  Its type says how, where a mesh has axes of `AxisType.Explicit`, as those of
  `jax.make_mesh` are, and JAX takes the batch of another layout for channels.
  """
  sharding = jax.typeof(y).sharding
  if jax.typeof(tangent).sharding == sharding:
    return tangent
  return jax.sharding.reshard(tangent, sharding)


def _kernel_tangent(convolve, x, dkernel):
  dy = convolve(x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3))
  return dy.transpose(2, 0, 1, 3)


def _pointwise_kernel_tangent(strides: Pair, x, dkernel):
  """That of a 1x1 convolution, whose transpose is one product of matrices."""
  # Of two axes: of four, XLA transposes and copies x before the product.
  x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1))
  dy = x.reshape(-1, x.shape[-1]) @ dkernel[0, 0]
  return dy.reshape(*x.shape[:-1], -1)


def _grouped(convolve, groups: int, x, kernel):
  """A grouped convolution as dense ones of some 32 channels.

  Each has a kernel that is zero outside of its groups. XLA computes the kernel
  gradient of a grouped convolution on CPU in plain loops, a hundred times
  slower than these.
  """
  inside, features = kernel.shape[2], kernel.shape[3] // groups
  merged = max(
    n
    for n in range(1, groups + 1)
    if groups % n == 0 and (n == 1 or n * inside <= _BLOCK)
  )
  rows = np.arange(merged * inside)[:, None] // inside
  mask = (rows == np.arange(merged * features) // features)[None, None]
  parts = []
  for first in range(0, groups, merged):
    block = lax.slice_in_dim(
      kernel, first * features, (first + merged) * features, axis=3
    )
    block = jnp.tile(block, (1, 1, merged, 1)) * mask
    part = lax.slice_in_dim(
      x, first * inside, (first + merged) * inside, axis=3
    )
    parts.append(convolve(part, block))
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def _by_patches(x, kernel, *, strides: Pair, padding, dilation: Pair, out):
  """Convolves a map smaller than the kernel, where XLA takes plain loops."""
  zero = jnp.zeros((), x.dtype)
  edges = ((0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0))
  x = lax.pad(x, zero, edges)
  height, width, channels, features = kernel.shape

  def under_tap(row, column):
    top, left = row * dilation[0], column * dilation[1]
    return lax.slice(
      x,
      (0, top, left, 0),
      (
        x.shape[0],
        top + (out[1] - 1) * strides[0] + 1,
        left + (out[2] - 1) * strides[1] + 1,
        channels,
      ),
      (1, *strides, 1),
    )

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


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def max_pool(
  x: Float[Array, "b h w c"], strides: int = 2, border: float = -math.inf
) -> Float[Array, "b h2 w2 c"]:
  """Returns 3x3 maxima, padded by 1: the pool of the stem.

  Args:
    x: map.
    strides: ratio of the height of the map to that of the result; default 2.
    border: number that the map is padded with: 0 in BiT; by default one that is
      never the greatest.
  """
  pool = functools.partial(_max_pool, strides, border)
  by_pairs = functools.partial(_max_pool_by_pairs, strides, border)
  return lax.platform_dependent(x, cpu=by_pairs, default=pool)


_BORDER = ((0, 0), (1, 1), (1, 1), (0, 0))


def _max_pool(strides, border, x):
  padding = _BORDER
  if border != -math.inf:
    x, padding = jnp.pad(x, _BORDER, constant_values=border), ((0, 0),) * 4
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    window_dimensions=(1, 3, 3, 1),
    window_strides=(1, strides, strides, 1),
    padding=padding,
  )


def _max_pool_by_pairs(strides, border, x):
  """Takes maxima of three columns, then of three rows.

  The gradient of `reduce_window`, select-and-scatter, is slow on CPU. As there,
  the first of equal numbers, row by row, gets the gradient.
  """
  x = jnp.pad(x, _BORDER, constant_values=border)
  for axis in (2, 1):
    last = x.shape[axis] - 2
    shifted = [
      lax.slice_in_dim(x, start, last + start, strides, axis)
      for start in range(3)
    ]
    x = functools.reduce(_first_of_greatest, shifted)
  return x


def _first_of_greatest(a, b):
  return jnp.where((a >= b) | jnp.isnan(a), a, b)
