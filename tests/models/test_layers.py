"""Each layer against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models.attention import SqueezeExcite
from flax_resnet.models.layers import Layers, StochasticDepth
from flax_resnet.models.norms import BatchNorm
from tests.drawing import normal

PARAMS = {"scale": np.array([0.5, 2, 1]), "bias": np.array([-1, 0.5, 1])}
STATS = {"mean": np.array([1, -1, 0.5]), "var": np.array([0.5, 2, 1.5])}
VARIABLES = jax.tree.map(
  lambda x: jnp.asarray(x, jnp.float32),
  {"params": PARAMS, "batch_stats": STATS},
)


@functools.partial(jax.jit, static_argnums=0)
def train(norm, x):
  y, updates = norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])
  return y, updates["batch_stats"]


@pytest.mark.parametrize("group", [None, 4, 2])
def test_batch_norm_is_that_of_numpy(group):
  x = 2 * normal(0, (8, 5, 4, 3)) + 3
  y, stats = train(BatchNorm(group_size=group), x)

  groups = np.asarray(x, np.float64).reshape(-1, group or 8, 5, 4, 3)
  mean = groups.mean((1, 2, 3), keepdims=True)
  std = np.sqrt(groups.var((1, 2, 3), keepdims=True) + 1e-5)
  wanted = (groups - mean) / std * PARAMS["scale"] + PARAMS["bias"]
  np.testing.assert_allclose(y, wanted.reshape(x.shape), atol=2e-5)
  # Groups count alike; the variance is the unbiased one, as in PyTorch.
  new = {"mean": mean, "var": groups.var((1, 2, 3), ddof=1, keepdims=True)}
  for name, each in new.items():
    np.testing.assert_allclose(
      stats[name],
      0.9 * STATS[name] + 0.1 * each.mean((0, 1, 2, 3)),
      rtol=1e-5,
    )


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
  x = (normal(2, (64, 4, 4, 3)) + 100).astype(jnp.bfloat16)
  y, stats = train(BatchNorm(dtype=jnp.bfloat16), x)
  assert y.dtype == jnp.bfloat16
  assert stats["mean"].dtype == jnp.float32
  mean = np.asarray(x, np.float64).mean((0, 1, 2))
  # Sums in bfloat16 would be off by a per cent.
  np.testing.assert_allclose(
    stats["mean"], 0.9 * STATS["mean"] + 0.1 * mean, rtol=1e-5
  )


def test_init_leaves_the_running_statistics_at_their_start():
  x = normal(3, (4, 2, 2, 3)) + 5
  init = jax.jit(functools.partial(BatchNorm().init, train=True))
  stats = init(jax.random.key(0), x)["batch_stats"]
  np.testing.assert_array_equal(stats["mean"], 0)
  np.testing.assert_array_equal(stats["var"], 1)


def windows(x, size, strides):
  """Returns [b, h, w, c, size, size] of x."""
  views = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return views[:, ::strides, ::strides]


@pytest.mark.parametrize(("size", "strides"), [(3, 1), (3, 2), (7, 2), (1, 2)])
def test_convolutions_are_padded_alike_on_both_sides(size, strides):
  """At an even height and an odd width."""
  x, kernel = normal(4, (2, 8, 9, 3)), normal(5, (size, size, 3, 2))
  y = Layers().conv(2, size, strides).apply({"params": {"kernel": kernel}}, x)
  pad = (size - 1) // 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  wanted = np.einsum(
    "bhwcij,ijcf->bhwf", windows(padded, size, strides), kernel
  )
  np.testing.assert_allclose(y, wanted, atol=1e-4)


def test_kernels_start_with_the_variance_of_he_et_al():
  init = jax.jit(Layers().conv(64, 3).init)
  kernel = init(jax.random.key(0), jnp.ones((1, 4, 4, 16)))["params"]["kernel"]
  # Fan-out: 3 * 3 * 64 outputs of each input.
  assert np.var(kernel) == pytest.approx(2 / (9 * 64), rel=0.06)


def test_squeeze_and_excitation_weighs_channels():
  """With a width that is rounded up to 8."""
  x = normal(7, (4, 3, 3, 8))
  module = SqueezeExcite(8)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: np.asarray(normal(p.size, p.shape)), shapes)
  fc1, fc2 = (jax.tree.map(np.squeeze, params[name]) for name in ("fc1", "fc2"))
  assert fc1["kernel"].shape == (8, 8)
  means = np.asarray(x).mean((1, 2))
  squeezed = np.maximum(means @ fc1["kernel"] + fc1["bias"], 0)
  weights = 1 / (1 + np.exp(-(squeezed @ fc2["kernel"] + fc2["bias"])))
  y = jax.jit(module.apply)({"params": params}, x)
  np.testing.assert_allclose(y, x * weights[:, None, None], rtol=1e-4)


def test_stochastic_depth_drops_examples_and_keeps_the_mean():
  f = np.ones((1000, 2, 2, 3), np.float32)
  drop = lambda rate, *, train: StochasticDepth().apply(
    {}, jnp.asarray(f), rate, train=train, rngs={"dropout": jax.random.key(0)}
  )
  y = np.asarray(drop(0.25, train=True))
  assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
  # Whole examples go, about a quarter of them.
  assert np.all(np.ptp(y.reshape(1000, -1), axis=1) == 0)
  assert abs((y == 0).mean() - 0.25) < 0.05
  np.testing.assert_array_equal(drop(0.25, train=False), f)
  np.testing.assert_array_equal(drop(0.0, train=True), f)
