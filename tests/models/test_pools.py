"""The pools against NumPy."""

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models import pools
from tests.drawing import normal, variable_shapes, variables_of


def means(x, height, width):
  """Returns weighted means of what is under each tap, of windows at stride 1.

  Args:
    x: padded map.
    height: weights of the rows.
    width: weights of the columns.
  """
  for axis, weights in ((1, height), (2, width)):
    windows = np.lib.stride_tricks.sliding_window_view(x, len(weights), axis)
    x = windows @ (np.array(weights) / sum(weights))
  return x


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("side", [6, 7])
def test_pools_are_those_of_numpy(side, strides):
  x = normal(0, (2, side, side + 1, 3))
  inside = np.asarray(x)
  border = ((0, 0), (1, 1), (1, 1), (0, 0))

  blurred = means(np.pad(inside, border, "reflect"), [1, 2, 1], [1, 2, 1])
  y = jax.jit(pools.blur_pool, static_argnums=1)(x, strides)
  np.testing.assert_allclose(
    y, blurred[:, ::strides, ::strides], rtol=1e-4, atol=1e-5
  )
  averaged = means(np.pad(inside, border), [1, 1, 1], [1, 1, 1])
  y = pools.average_pool_3x3(x, strides)
  np.testing.assert_allclose(
    y, averaged[:, ::strides, ::strides], rtol=1e-4, atol=1e-5
  )
  whole = means(inside, [1, 1], [1, 1])[:, ::strides, ::strides]
  y = pools.average_pool(x, strides, ceil=False)
  np.testing.assert_allclose(y, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["average", "blur"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_pooled_maps_fit_the_shortcuts_at_every_size(name, kind):
  net = fr.create_model(name, downsampling=kind, stage_sizes=(1, 1, 1, 1))
  for side in (64, 67, 75):
    shapes = variable_shapes(net, (1, side, side + 1, 3))
    assert shapes["params"].keys() >= {"stage4_block1", "head"}


def test_global_pools():
  model = fr.create_model(
    "resnet18", num_classes=0, stage_sizes=(1,), stage_features=(8,)
  )
  images = normal(1, (2, 16, 12, 3))
  variables = variables_of(model, images.shape)

  def run(kind):
    net = model.clone(global_pool=kind)
    return np.asarray(net.apply(variables, images, train=False))

  last = run("none")
  assert last.shape == (2, 4, 3, 8)
  average, greatest = last.mean((1, 2)), last.max((1, 2))
  close = np.testing.assert_allclose
  close(run("avg"), average, rtol=1e-5)
  close(run("max"), greatest, rtol=1e-5)
  close(run("avgmax"), (average + greatest) / 2, rtol=1e-5)
  both = np.concatenate([average, greatest], -1)
  close(run("catavgmax"), both, rtol=1e-5)
