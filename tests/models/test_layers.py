"""Each layer against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models.layers import Layers, StochasticDepth
from tests.drawing import normal


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


@pytest.mark.parametrize("strides", [1, 2])
def test_kernels_are_standardized(strides):
  x, kernel = normal(4, (2, 8, 9, 3)), 2 * normal(5, (3, 3, 3, 2)) + 1
  layers = Layers(weight_standardization=True)
  apply = lambda layers, kernel: layers.conv(2, 3, strides).apply(
    {"params": {"kernel": kernel}}, x
  )
  by_output = kernel.reshape(-1, 2)
  standard = (by_output - by_output.mean(0)[None]) / by_output.std(0)[None]
  wanted = apply(Layers(), standard.reshape(kernel.shape))
  np.testing.assert_allclose(apply(layers, kernel), wanted, atol=1e-4)


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
