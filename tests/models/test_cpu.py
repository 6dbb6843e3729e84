"""What is computed otherwise on CPU equals the plain operation."""

import collections
import functools
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet
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
    # Of more than 16 channels, the dilated forms.
    (6, 5, {"kernel": 3, "channels": (16, 20)}),
    (7, 6, {"kernel": 3, "strides": 2, "channels": (16, 20)}),
    (7, 6, {"kernel": 3, "dilation": 2, "channels": (16, 20)}),
    (7, 6, {"kernel": 1, "strides": 2, "channels": (20, 16)}),
    (6, 5, {"kernel": 3, "groups": 4, "channels": (80, 40)}),
    (6, 5, {"kernel": 3, "groups": 2, "channels": (80, 84)}),
    (6, 5, {"kernel": 3, "groups": 6, "channels": (6, 12)}),
  ],
)
def test_convolution_and_its_gradients(height, width, settings):
  channels, features = settings.get("channels", (4, 6))
  size, groups = settings["kernel"], settings.get("groups", 1)
  settings = {k: v for k, v in settings.items() if k != "channels"}
  assert_equal(
    value_and_gradients,
    *both_convs(**settings),
    draw(0, (3, height, width, channels)),
    draw(1, (size, size, channels // groups, features)),
  )


@pytest.mark.parametrize(
  "settings",
  [
    {"kernel": 3},
    {"kernel": 3, "strides": 2},
    {"kernel": 1},
    {"kernel": 3, "groups": 2},
  ],
)
def test_a_convolution_has_second_derivatives(settings):
  groups, size = settings.get("groups", 1), settings["kernel"]
  kernel = draw(1, (size, size, 18 // groups, 4))
  assert_equal(
    second_derivatives, *both_convs(**settings), draw(0, (2, 5, 6, 18)), kernel
  )


def test_a_convolution_is_mapped_rematerialised_and_sharded():
  """`vmap`, `remat`, and `shard_map` over all devices, with gradients."""

  def mapped(convolve, x, kernels):
    y = jax.vmap(jax.checkpoint(convolve), (None, 0))(x, kernels)
    return jnp.tanh(y)

  def sharded(convolve, x, kernels):
    parts = jax.sharding.PartitionSpec("data")
    mesh = jax.make_mesh(
      (len(jax.devices()),), ("data",), (jax.sharding.AxisType.Auto,)
    )
    return jax.shard_map(
      lambda x, kernel: convolve(x, kernel),
      mesh=mesh,
      in_specs=(parts, jax.sharding.PartitionSpec()),
      out_specs=parts,
    )(x, kernels[0])

  convs = both_convs(kernel=3)
  x, kernels = draw(0, (8, 5, 6, 18)), draw(1, (2, 3, 3, 18, 4))
  for use in (mapped, sharded):
    ours, plain = (functools.partial(use, convolve) for convolve in convs)
    assert_equal(value_and_gradients, ours, plain, x, kernels)


@pytest.mark.parametrize("channels", [4, 20])
def test_a_convolution_in_a_loop_is_in_the_layout_that_the_cpu_is_fast_at(
  channels,
):
  """In any other, a scanned network's step takes tens of times longer."""

  def loss(convolve, x, kernels):
    return jax.lax.scan(
      lambda x, kernel: (convolve(x, kernel), None), x, kernels
    )[0].sum()

  def layouts(convolve):
    slope = jax.jit(jax.grad(functools.partial(loss, convolve), (0, 1)))
    kernels = draw(1, (3, 3, 3, channels, channels))
    arguments = draw(0, (2, 5, 6, channels)), kernels
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


@pytest.mark.parametrize("settings", [{"kernel": 3}, {"kernel": 1}])
@pytest.mark.parametrize("groups", [1, 2])
def test_only_the_cpu_has_formulations_of_its_own(settings, groups):
  size = settings["kernel"]
  ours, plain = both_convs(**settings, groups=groups)
  arguments = draw(0, (2, 6, 6, 20)), draw(1, (size, size, 20 // groups, 20))

  def lowered(convolve, platform):
    slope = jax.grad(lambda *a: convolve(*a).sum(), (0, 1))
    traced = jax.jit(slope).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  for platform in ("cuda", "tpu"):
    convolutions = [
      re.findall(r"stablehlo.convolution.*", lowered(each, platform))
      for each in (ours, plain)
    ]
    operations = [
      sorted(re.sub(r"%[\w#]+", "", line) for line in lines)
      for lines in convolutions
    ]
    assert operations[0] == operations[1]
    assert "inlineable" not in lowered(ours, platform)
    assert "barrier" not in lowered(ours, platform)
  assert "inlineable" in lowered(ours, "cpu")


def plain_max_pool(x, strides=2, border=-jnp.inf):
  edges = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, edges, constant_values=border)
  return nn.max_pool(x, window_shape=(3, 3), strides=(strides, strides))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("options", [{}, {"strides": 1}, {"border": 0.0}])
def test_max_pool_and_which_of_equal_numbers_gets_the_gradient(size, options):
  ties = np.random.default_rng(0).integers(0, 3, (2, size, size + 1, 3))
  x = jnp.asarray(ties - 3.0)  # Below 0, so that a padding by 0 is seen.
  ours, theirs = (
    functools.partial(pool, **options)
    for pool in (cpu.max_pool, plain_max_pool)
  )
  assert_equal(value_and_gradients, ours, theirs, x)


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


def compiled_step(name):
  """Returns the program of a network's gradients by a plain `jax.jit`.

  Four blocks, of which the last one's 3x3 convolution is of maps of 2x2.
  """
  with jax.enable_x64(False):
    model = flax_resnet.create_model(
      name,
      num_classes=4,
      stage_sizes=(1, 1, 1, 1),
      stage_features=(64, 64, 64, 64),
    )
    images = jnp.ones((32, 64, 64, 3))
    variables = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), images
    )

    def loss(params, batch_stats, images):
      variables = {"params": params, "batch_stats": batch_stats}
      logits, _ = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
      )
      return jnp.square(logits).mean()

    lowered = jax.jit(jax.grad(loss)).lower(
      variables["params"], variables["batch_stats"], images
    )
    return lowered.compile().as_text()


@pytest.mark.parametrize(
  ("name", "stems", "kernels", "patches"),
  [
    ("resnet50", 1, 4, 1),
    ("resnet50d", 0, 6, 1),
    # The grouped ones are four dense ones each of 32 channels.
    ("resnext50_32x4d", 1, 1 + 4 + 4 + 4, 4),
  ],
)
def test_no_convolution_of_a_step_is_ynnpacks(name, stems, kernels, patches):
  """But the one of 7x7; each kernel's gradient is in a call of its own."""
  program = compiled_step(name)
  computations = re.split(r"\n(?=%|ENTRY)", program)
  of_ynnpack = {
    re.search(r"calls=(%[\w.-]+)", line)[1]
    for line in program.splitlines()
    if "__ynn_fusion" in line
  }
  convolutions = [
    text
    for text in computations
    if " convolution(" in text and text.split()[0] in of_ynnpack
  ]
  assert len(convolutions) == stems
  assert all("f32[7,7,3,64]" in text for text in convolutions)
  calls = re.findall(r" call\(.*to_apply=%(\w+?)_?[.\d]", program)
  assert collections.Counter(calls) == {
    "_kernel_tangent": kernels,
    "_pointwise_kernel_tangent": 12,
    "_by_patches": 2 * patches,  # Forward and backward.
  }
