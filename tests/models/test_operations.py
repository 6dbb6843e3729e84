"""What is computed otherwise on CPU equals the plain operation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models import cpu

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def draw(*shape):
  return jnp.asarray(RNG.normal(size=shape))


def value_and_gradients(function, *arguments):
  """Returns the output, and gradients for a random direction of it."""
  output, pull_back = jax.vjp(jax.jit(function), *arguments)
  direction = np.random.default_rng(1).normal(size=output.shape)
  return output, *pull_back(jnp.asarray(direction))


def assert_equal(ours, plain, *arguments):
  for a, b in zip(
    value_and_gradients(ours, *arguments),
    value_and_gradients(plain, *arguments),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def options(kernel, strides=1, dilation=1, groups=1):
  pad = dilation * (kernel - 1) // 2
  return {
    "padding": ((pad, pad), (pad, pad)),
    "rhs_dilation": (dilation, dilation),
    "feature_group_count": groups,
    "dimension_numbers": jax.lax.conv_dimension_numbers(
      (1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC")
    ),
    "strides": (strides, strides),
    "precision": None,
  }


def plain_conv(x, kernel, *, strides, **others):
  return jax.lax.conv_general_dilated(
    x, kernel, window_strides=strides, **others
  )


@pytest.mark.parametrize(
  ("height", "width", "settings"),
  [
    (6, 5, {"kernel": 3}),
    (6, 5, {"kernel": 3, "strides": 2, "groups": 2}),
    (6, 5, {"kernel": 1}),
    (6, 5, {"kernel": 1, "strides": 2}),
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
def test_convolution(height, width, settings):
  arguments = options(**settings)
  kernel = settings["kernel"]
  assert_equal(
    functools.partial(cpu.conv, **arguments),
    functools.partial(plain_conv, **arguments),
    draw(3, height, width, 4),
    draw(kernel, kernel, 4 // settings.get("groups", 1), 6),
  )


def second_derivatives(convolve, x, kernel):
  """Forward over reverse, and reverse over reverse."""

  def loss(x, kernel):
    return jnp.sin(convolve(x, kernel)).sum()

  def slope(x, kernel):
    dx, dkernel = jax.grad(loss, (0, 1))(x, kernel)
    return jnp.sin(dx).sum() + jnp.sin(dkernel).sum()

  directions = jnp.cos(x), jnp.cos(kernel)
  forward = jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), directions)[1]
  return *forward, *jax.grad(slope, (0, 1))(x, kernel)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_has_second_derivatives(strides):
  arguments = draw(2, 5, 6, 3), draw(3, 3, 3, 2)
  setting = options(3, strides)
  for ours, plain in zip(
    second_derivatives(
      functools.partial(cpu.conv, **setting), *arguments
    ),
    second_derivatives(functools.partial(plain_conv, **setting), *arguments),
    strict=True,
  ):
    np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-11)


def test_a_convolution_in_a_loop_is_in_the_layout_that_the_cpu_is_fast_at():
  """In any other, a scanned network's step takes tens of times longer."""

  def loss(convolve, x, kernels):
    return jax.lax.scan(
      lambda x, kernel: (convolve(x, kernel), None), x, kernels
    )[0].sum()

  def layouts(convolve):
    setting = functools.partial(convolve, **options(3))
    slope = jax.jit(jax.grad(functools.partial(loss, setting), (0, 1)))
    arguments = draw(2, 5, 6, 4), draw(3, 3, 3, 4, 4)
    program = slope.lower(*arguments).compile().as_text()
    return set(re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", program))

  assert layouts(cpu.conv) == {"b01f_01io->b01f"}
  assert len(layouts(plain_conv)) == 3


def test_nothing_is_convolved_for_a_gradient_that_nobody_wants():
  x, kernel = draw(2, 5, 6, 4), draw(3, 3, 4, 4)
  convolve = functools.partial(cpu.conv, **options(3))

  def count(argnums):
    slope = jax.grad(lambda *a: jnp.sin(convolve(*a)).sum(), argnums)
    traced = jax.jit(slope).trace(x, kernel)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    return text.count("stablehlo.convolution")

  assert (count((0, 1)), count((0,)), count((1,))) == (3, 2, 2)


@pytest.mark.parametrize("settings", [{"kernel": 1}, {"kernel": 3}])
def test_only_the_cpu_has_formulations_of_its_own(settings):
  convolve = jax.jit(functools.partial(cpu.conv, **options(**settings)))
  size = settings["kernel"]
  traced = convolve.trace(draw(2, 2, 2, 4), draw(size, size, 4, 4))
  on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
  on_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "dot_general" in on_cpu
  assert "convolution" not in on_cpu
  assert "convolution" in on_tpu
  assert "barrier" not in on_tpu


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_and_who_of_equals_gets_the_gradient(size):
  ties = jnp.asarray(RNG.integers(0, 3, (2, size, size + 1, 3)), jnp.float64)
  assert_equal(cpu.max_pool, cpu._max_pool, ties)


def test_max_pool_passes_nan_on():
  for place in range(3):
    x = draw(1, 4, 4, 1).at[0, place, place, 0].set(jnp.nan)
    np.testing.assert_array_equal(
      cpu.max_pool(x), cpu._max_pool(x)
    )


def plain_batch_norm(x, scale, bias):
  mean = x.mean((1, 2, 3), keepdims=True)
  var = jnp.square(x - mean).mean((1, 2, 3), keepdims=True)
  return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias, mean, var


def our_batch_norm(x, scale, bias):
  return cpu.batch_norm(x, scale, bias, 1e-3)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_batch_norm_and_its_gradient(output):
  arguments = draw(2, 3, 4, 5, 6) + 3, draw(6), draw(6)
  assert_equal(
    lambda *a: our_batch_norm(*a)[output],
    lambda *a: plain_batch_norm(*a)[output],
    *arguments,
  )


def test_batch_norm_has_second_derivatives():
  """Forward over reverse: what Hessian-vector products take."""
  arguments = draw(2, 3, 2, 2, 3) + 1, draw(3), draw(3)
  directions = draw(2, 3, 2, 2, 3), draw(3), draw(3)

  def hessian_times_vector(norm):
    def loss(*arguments):
      y, mean, var = norm(*arguments)
      return jnp.sin(y).sum() + (mean**2 * var).sum()

    return jax.jvp(jax.grad(loss, (0, 1, 2)), arguments, directions)[1]

  for a, b in zip(
    hessian_times_vector(our_batch_norm),
    hessian_times_vector(plain_batch_norm),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_barriers_are_kept_up_to_fusion():
  """Without them a training step takes twice as long on CPU."""
  convolve = functools.partial(cpu.conv, **options(3))
  compiled = (
    jax.jit(convolve, compiler_options=cpu.compiler_options("cpu"))
    .lower(draw(2, 8, 8, 4), draw(3, 3, 4, 4))
    .compile()
  )
  assert "opt-barrier" in compiled.as_text()
  assert cpu.compiler_options("gpu") == {}
