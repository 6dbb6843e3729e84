"""The norms against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.models.layers import Layers
from flax_resnet.models.norms import BatchNorm, NORMS
from tests.drawing import normal, variables_of

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


X = 2 * normal(0, (2, 5, 4, 64)) + 1


def by_group(x):
  """Returns mean and variance of 32 groups of two channels, for each."""
  groups = x.reshape(2, 5, 4, 32, 2)
  mean, var = groups.mean((1, 2, 4)), groups.var((1, 2, 4))
  return [np.repeat(v, 2, -1)[:, None, None] for v in (mean, var)]


def group(x, *, scale, bias):
  mean, var = by_group(x)
  return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def evonorm(x, *, scale, bias, v=None):
  if v is not None:
    x = x / (1 + np.exp(-v * x)) / np.sqrt(by_group(x)[1] + 1e-5)
  return x * scale + bias


def filter_response(x, *, scale, bias, tau=-np.inf):
  power = np.square(x).mean((1, 2), keepdims=True)
  return np.maximum(x / np.sqrt(power + 1e-5) * scale + bias, tau)


@pytest.mark.parametrize(
  ("reference", "own"),
  [
    (group, {}),
    *((evonorm, {"activate": activate}) for activate in (True, False)),
    *((filter_response, {"activate": activate}) for activate in (True, False)),
  ],
)
def test_a_norm_without_statistics_is_that_of_numpy(reference, own):
  norm = NORMS[reference.__name__](**own)
  variables = variables_of(norm, X.shape)
  assert variables.keys() == {"params"}
  params = jax.tree.map(np.float64, variables["params"])
  wanted = reference(np.float64(X), **params)
  y = jax.jit(functools.partial(norm.apply, train=True))(variables, X)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
  y = norm.apply(variables, X.astype(jnp.bfloat16), train=False)
  assert y.dtype == jnp.float32  # That of the network.


def test_scales_of_zero_make_every_norm_zero():
  for kind in NORMS:
    norm = Layers(kind).norm(zero_init=True)
    y, _ = jax.jit(functools.partial(norm.init_with_output, train=False))(
      jax.random.key(0), X
    )
    np.testing.assert_array_equal(y, 0)
