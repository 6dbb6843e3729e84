"""H(x) = F(x) + x, in every block and with every shortcut."""

import functools

import jax
import numpy as np
import pytest

from flax_resnet import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from flax_resnet.models.layers import Layers
from flax_resnet.models.resnest import ResNeStBlock
from flax_resnet.models.shortcut import Shortcut
from tests.drawing import normal, variable_shapes, variables_of

X = normal(0, (2, 6, 6, 8))
# The blocks, each with the last layer of its F(x) that has parameters.
BLOCKS = {
  BasicBlock: "bn2",
  BottleneckBlock: "bn3",
  PreActBasicBlock: "conv2",
  PreActBottleneckBlock: "conv3",
  ResNeStBlock: "bn3",
}


def end(block, total):
  """Returns what a block makes of the sum F(x) + x."""
  return total if block.pre_activation else jax.nn.relu(total)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_adds_its_input(block):
  features = 8 // block.expansion
  plain = block(features, shortcut="none")
  variables = variables_of(plain, X.shape)

  @jax.jit
  def outputs(variables):
    with_skip = block(features, shortcut="identity")
    return [net.apply(variables, X, train=False) for net in (plain, with_skip)]

  f, h = outputs(variables)
  # Where F(x) is positive, ReLU has not hidden it.
  shown = slice(None) if block.pre_activation else f > 0
  assert np.size(f[shown]) > 50
  np.testing.assert_allclose(h[shown], end(block, f + X)[shown], atol=1e-5)


@pytest.mark.parametrize(("block", "last"), BLOCKS.items())
def test_a_block_that_starts_at_zero_is_its_shortcut(block, last):
  net = block(8 // block.expansion, zero_init_residual=True)

  @jax.jit
  def output(variables):
    start = net.init(jax.random.key(1), X, train=False)["params"][last]
    params = variables["params"] | {last: start}
    return net.apply(variables | {"params": params}, X, train=False)

  y = output(variables_of(net, X.shape))
  np.testing.assert_array_equal(y, end(block, X))


# The layers of each shortcut where the shape changes, and where it stays.
PROJECTION = {"conv", "bn"}
SHORTCUTS = {
  "identity": (set(), set()),
  "projection": (PROJECTION, set()),
  "projection_all": (PROJECTION, PROJECTION),
  "projection_3x3": (PROJECTION, set()),
  "pooled": (PROJECTION, set()),
  "conv": ({"conv"}, {"conv"}),
  "none": (set(), set()),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_every_shortcut_fits_every_shape(block, kind):
  cases = [(16, 2), (16, 1), (8 // block.expansion, 1)]
  for (features, strides), changed in zip(cases, (0, 0, 1), strict=True):
    net = block(features, strides, shortcut=kind, use_bias=strides == 2)
    variables = variable_shapes(net, X.shape)
    y = jax.eval_shape(functools.partial(net.apply, train=False), variables, X)
    assert y.shape == (2, 6 // strides, 6 // strides, features * net.expansion)
    layers = SHORTCUTS[kind][changed]
    if block.pre_activation:  # x comes normalized.
      layers = layers - {"bn"}
    found = variables["params"].get("shortcut", {})
    assert found.keys() == layers
    if layers:
      bias = {"bias"} if kind == "conv" else set()
      assert found["conv"].keys() == {"kernel"} | bias
    bias = {"bias"} if net.use_bias else set()
    assert variables["params"]["conv1"].keys() == {"kernel"} | bias


def test_option_a_subsamples_and_pads_channels_on_both_sides():
  projection = functools.partial(Layers().conv, 12, 1)
  skip = Shortcut(projection, "identity", strides=2)
  y = skip.apply({}, X, (2, 3, 3, 12), train=False)
  padding = ((0, 0), (0, 0), (0, 0), (2, 2))
  np.testing.assert_array_equal(y, np.pad(X[:, ::2, ::2], padding))


@pytest.mark.parametrize("block", [BottleneckBlock, PreActBottleneckBlock])
@pytest.mark.parametrize("first", [False, True])
def test_which_convolution_of_a_bottleneck_has_the_stride(block, first):
  net = block(4, 2, stride_in_1x1=first)
  _, state = jax.eval_shape(
    functools.partial(
      net.apply, train=False, capture_intermediates=True, mutable=True
    ),
    variable_shapes(net, X.shape),
    X,
  )
  maps = [state["intermediates"][f"conv{n}"]["__call__"][0] for n in (1, 2, 3)]
  assert [y.shape[1] for y in maps] == [3 if first else 6, 3, 3]
