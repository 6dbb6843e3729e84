import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models.layers import BatchNorm
from flax_resnet.models.layers import Layers
from flax_resnet.models.cpu import max_pool

RNG = np.random.default_rng(0)


def batch_norm(x, group, scale, bias, epsilon=1e-5):
  """BatchNorm in NumPy: output, and mean and unbiased variance by group."""
  groups = x.reshape(-1, group, *x.shape[1:])
  mean = groups.mean((1, 2, 3), keepdims=True)
  var = groups.var((1, 2, 3), keepdims=True)
  y = (groups - mean) / np.sqrt(var + epsilon) * scale + bias
  unbiased = groups.var((1, 2, 3), ddof=1)
  return y.reshape(x.shape), mean.reshape(-1, x.shape[-1]), unbiased


@pytest.fixture(scope="module")
def variables():
  draw = lambda low, high: jnp.asarray(RNG.uniform(low, high, 3), jnp.float32)
  return {
    "params": {"scale": draw(0.5, 2), "bias": draw(-1, 1)},
    "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
  }


@pytest.mark.parametrize("group", [8, 4, 2])
def test_batch_norm_is_that_of_numpy(variables, group):
  x = jnp.asarray(RNG.normal(3, 2, (8, 5, 4, 3)), jnp.float32)
  norm = BatchNorm(group_size=None if group == 8 else group)
  y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
  wanted, mean, var = batch_norm(np.asarray(x), group, **variables["params"])
  np.testing.assert_allclose(y, wanted, atol=2e-5)
  old, new = variables["batch_stats"], updates["batch_stats"]
  # Groups count alike; the variance is the unbiased one, as in PyTorch.
  np.testing.assert_allclose(
    new["mean"], 0.9 * old["mean"] + 0.1 * mean.mean(0), rtol=1e-5
  )
  np.testing.assert_allclose(
    new["var"], 0.9 * old["var"] + 0.1 * var.mean(0), rtol=1e-5
  )


def test_batch_norm_evaluates_with_running_statistics(variables):
  x = jnp.asarray(RNG.normal(size=(2, 3, 3, 3)), jnp.float32)
  y = BatchNorm().apply(variables, x, train=False)
  stats, params = variables["batch_stats"], variables["params"]
  scaled = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  np.testing.assert_allclose(
    y, scaled * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5
  )


def test_batch_norm_of_bfloat16_keeps_float32_statistics(variables):
  x = jnp.asarray(RNG.normal(100, 1, (64, 4, 4, 3)), jnp.bfloat16)
  y, updates = BatchNorm(dtype=jnp.bfloat16).apply(
    variables, x, train=True, mutable=["batch_stats"]
  )
  assert y.dtype == jnp.bfloat16
  assert updates["batch_stats"]["mean"].dtype == jnp.float32
  mean = np.asarray(x, np.float64).mean((0, 1, 2))
  old = variables["batch_stats"]["mean"]
  # Sums in bfloat16 would be off by a per cent.
  np.testing.assert_allclose(
    updates["batch_stats"]["mean"], 0.9 * old + 0.1 * mean, rtol=1e-5
  )


def test_batch_norm_refuses_a_group_that_does_not_divide(variables):
  with pytest.raises(ValueError, match="8 examples .* groups of 3"):
    BatchNorm(group_size=3).apply(
      variables, jnp.ones((8, 2, 2, 3)), train=True, mutable=["batch_stats"]
    )


def test_init_leaves_the_running_statistics_at_their_start():
  x = jnp.asarray(RNG.normal(5, 3, (4, 2, 2, 3)), jnp.float32)
  stats = BatchNorm().init(jax.random.key(0), x, train=True)["batch_stats"]
  np.testing.assert_array_equal(stats["mean"], 0)
  np.testing.assert_array_equal(stats["var"], 1)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
  ("kernel", "strides"), [(3, 1), (3, 2), (7, 2), (1, 2)]
)
def test_convolutions_are_padded_alike_on_both_sides(size, kernel, strides):
  conv = Layers().conv(2, kernel, strides)
  x = RNG.normal(size=(1, size, size, 3)).astype(np.float32)
  params = conv.init(jax.random.key(0), x)
  y = conv.apply(params, x)
  pad = (kernel - 1) // 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  weights = np.asarray(params["params"]["kernel"])
  out = (size + 2 * pad - kernel) // strides + 1
  assert y.shape == (1, out, out, 2)
  for i in range(out):
    for j in range(out):
      top, left = i * strides, j * strides
      window = padded[0, top : top + kernel, left : left + kernel]
      wanted = np.einsum("hwc,hwcf->f", window, weights)
      np.testing.assert_allclose(y[0, i, j], wanted, atol=1e-4)


@pytest.mark.parametrize("size", [6, 7])
def test_max_pool_is_padded_by_one(size):
  x = -RNG.uniform(1, 2, (1, size, size, 2)).astype(np.float32)
  y = max_pool(jnp.asarray(x))
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  out = (size - 1) // 2 + 1
  for i in range(out):
    for j in range(out):
      window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      np.testing.assert_array_equal(y[0, i, j], window.max((0, 1)))


def test_kernels_start_with_the_variance_of_he_et_al():
  conv = Layers().conv(256, 3)
  kernel = conv.init(jax.random.key(0), jnp.ones((1, 4, 4, 64)))["params"][
    "kernel"
  ]
  # fan-out: 3 * 3 * 256 outputs of each input.
  assert np.var(kernel) == pytest.approx(2 / (9 * 256), rel=0.02)
