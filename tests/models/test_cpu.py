"""What is computed otherwise on CPU equals the plain operation."""

import functools
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models import cpu
from tests.drawing import normal

draw = functools.partial(normal, dtype=np.float64)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def assert_equal(measure, ours, plain, *arguments):
  """Asserts that `measure` gives the same of both; compiles them at once."""
  both = jax.jit(lambda *a: (measure(ours, *a), measure(plain, *a)))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11),
    *both(*arguments),
  )


def value_and_gradients(function, *arguments):
  """Returns the outputs, and gradients for a random direction of them."""
  outputs, pull_back = jax.vjp(function, *arguments)
  direction = jax.tree.map(lambda y: draw(9, y.shape), outputs)
  return outputs, pull_back(direction)


def second_derivatives(function, *arguments):
  """Returns forward over reverse, what Hessian-vector products take."""

  def loss(*arguments):
    return sum(jnp.sin(y).sum() for y in jax.tree.leaves(function(*arguments)))

  slope = jax.grad(loss, range(len(arguments)))
  directions = tuple(map(jnp.cos, arguments))
  return jax.jvp(slope, arguments, directions)[1]


def plain_conv(x, kernel, *, strides, **others):
  return jax.lax.conv_general_dilated(
    x, kernel, window_strides=strides, **others
  )


def both_convs(kernel, strides=1, dilation=1, groups=1):
  """Returns our convolution and JAX's, as `nn.Conv` calls them."""
  pad = dilation * (kernel - 1) // 2
  arguments = {
    "padding": ((pad, pad), (pad, pad)),
    "rhs_dilation": (dilation, dilation),
    "feature_group_count": groups,
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "strides": (strides, strides),
    "precision": None,
  }
  return [functools.partial(f, **arguments) for f in (cpu.conv, plain_conv)]


@pytest.mark.parametrize(
  ("height", "width", "settings"),
  [
    (6, 5, {"kernel": 3}),
    (6, 5, {"kernel": 3, "strides": 2, "groups": 2}),
    (6, 5, {"kernel": 1}),
    (7, 6, {"kernel": 1, "strides": 2}),
    (2, 2, {"kernel": 3}),
    (2, 5, {"kernel": 3}),
    (1, 1, {"kernel": 3}),
    (4, 3, {"kernel": 3, "strides": 2}),
    (2, 3, {"kernel": 3, "dilation": 2}),
    (5, 6, {"kernel": 7, "strides": 2}),
    (2, 2, {"kernel": 3, "groups": 2}),
  ],
)
def test_convolution_and_its_gradients(height, width, settings):
  size, groups = settings["kernel"], settings.get("groups", 1)
  assert_equal(
    value_and_gradients,
    *both_convs(**settings),
    draw(0, (3, height, width, 4)),
    draw(1, (size, size, 4 // groups, 6)),
  )


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_has_second_derivatives(strides):
  arguments = draw(0, (2, 5, 6, 3)), draw(1, (3, 3, 3, 2))
  convs = both_convs(kernel=3, strides=strides)
  assert_equal(second_derivatives, *convs, *arguments)


def test_a_convolution_in_a_loop_is_in_the_layout_that_the_cpu_is_fast_at():
  """In any other, a scanned network's step takes tens of times longer."""

  def loss(convolve, x, kernels):
    return jax.lax.scan(
      lambda x, kernel: (convolve(x, kernel), None), x, kernels
    )[0].sum()

  def layouts(convolve):
    slope = jax.jit(jax.grad(functools.partial(loss, convolve), (0, 1)))
    arguments = draw(0, (2, 5, 6, 4)), draw(1, (3, 3, 3, 4, 4))
    program = slope.lower(*arguments).compile().as_text()
    return set(re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", program))

  ours, plain = both_convs(kernel=3)
  assert layouts(ours) == {"b01f_01io->b01f"}
  assert len(layouts(plain)) == 3


def test_nothing_is_convolved_for_a_gradient_that_nobody_wants():
  x, kernel = draw(0, (2, 5, 6, 4)), draw(1, (3, 3, 4, 4))
  convolve, _ = both_convs(kernel=3)

  def count(argnums):
    slope = jax.grad(lambda *a: jnp.sin(convolve(*a)).sum(), argnums)
    traced = jax.jit(slope).trace(x, kernel)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    return text.count("stablehlo.convolution")

  assert (count((0, 1)), count((0,)), count((1,))) == (3, 2, 2)


@pytest.mark.parametrize("size", [1, 3])
def test_only_the_cpu_has_formulations_of_its_own(size):
  convolve, _ = both_convs(kernel=size)
  traced = jax.jit(convolve).trace(
    draw(0, (2, 2, 2, 4)), draw(1, (size, size, 4, 4))
  )
  on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
  on_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "dot_general" in on_cpu
  assert "convolution" not in on_cpu
  assert "convolution" in on_tpu
  assert "barrier" not in on_tpu


plain_max_pool = functools.partial(
  nn.max_pool,
  window_shape=(3, 3),
  strides=(2, 2),
  padding=((1, 1), (1, 1)),
)


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_and_which_of_equal_numbers_gets_the_gradient(size):
  ties = np.random.default_rng(0).integers(0, 3, (2, size, size + 1, 3))
  x = jnp.asarray(ties - 3.0)  # Below 0, so that a padding by 0 is seen.
  assert_equal(value_and_gradients, cpu.max_pool, plain_max_pool, x)


def test_max_pool_passes_nan_on():
  x = draw(0, (3, 4, 4, 1))
  for n in range(3):
    x = x.at[n, n, n, 0].set(jnp.nan)
  np.testing.assert_array_equal(cpu.max_pool(x), plain_max_pool(x))


def our_batch_norm(x, scale, bias):
  return cpu.batch_norm(x, scale, bias, 1e-3)


def plain_batch_norm(x, scale, bias):
  mean = x.mean((1, 2, 3), keepdims=True)
  var = jnp.square(x - mean).mean((1, 2, 3), keepdims=True)
  scale, bias = (p.reshape(1, 1, 1, 1, -1) for p in (scale, bias))
  return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias, mean, var


@pytest.mark.parametrize("measure", [value_and_gradients, second_derivatives])
def test_batch_norm_and_its_derivatives(measure):
  arguments = draw(0, (2, 3, 4, 5, 6)) + 3, draw(1, (6,)), draw(2, (6,))
  assert_equal(measure, our_batch_norm, plain_batch_norm, *arguments)


def test_barriers_are_kept_up_to_fusion():
  """Without them a training step takes twice as long on CPU."""
  convolve, _ = both_convs(kernel=3)
  compiled = (
    jax.jit(convolve, compiler_options=cpu.compiler_options("cpu"))
    .lower(draw(0, (2, 8, 8, 4)), draw(1, (3, 3, 4, 4)))
    .compile()
  )
  assert "opt-barrier" in compiled.as_text()
  assert cpu.compiler_options("gpu") == {}
