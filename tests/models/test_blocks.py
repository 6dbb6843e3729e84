import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import BasicBlock
from flax_resnet import BottleneckBlock
from flax_resnet import PreActBasicBlock
from flax_resnet import PreActBottleneckBlock
from flax_resnet.models.layers import SqueezeExcite
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.shortcut import SHORTCUTS
from tests.drawing import normal

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 8)), jnp.float32)
BLOCKS = [BasicBlock, BottleneckBlock]
PRE_ACTIVATION = [PreActBasicBlock, PreActBottleneckBlock]


def run(block, x=X):
  variables = block.init(jax.random.key(1), x, train=False)
  return block.apply(variables, x, train=False), variables["params"]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_that_starts_at_zero_is_its_shortcut(block):
  features = 8 // block.expansion
  y, _ = run(block(features, zero_init_residual=True))
  np.testing.assert_array_equal(y, jax.nn.relu(X))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_adds_its_input(block):
  features = 8 // block.expansion
  with_skip, params = run(block(features, shortcut="identity"))
  plain, same = run(block(features, shortcut="none"))
  jax.tree.map(np.testing.assert_array_equal, params, same)
  # Where both are positive, ReLU hides nothing: H(x) - F(x) = x.
  both = (with_skip > 0) & (plain > 0)
  assert both.sum() > 50
  np.testing.assert_allclose((with_skip - plain)[both], X[both], atol=1e-5)


@pytest.mark.parametrize("block", PRE_ACTIVATION)
def test_a_pre_activation_block_adds_its_input_and_nothing_after(block):
  features = 8 // block.expansion
  y, _ = run(block(features, zero_init_residual=True))
  np.testing.assert_array_equal(y, X)
  with_skip, _ = run(block(features, shortcut="identity"))
  plain, _ = run(block(features, shortcut="none"))
  np.testing.assert_allclose(with_skip - plain, X, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS + PRE_ACTIVATION)
@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("strides", [1, 2])
def test_every_shortcut_fits_every_shape(block, kind, strides):
  y, params = run(block(16, strides, shortcut=kind))
  assert y.shape == (4, 6 // strides, 6 // strides, 16 * block.expansion)
  learned = {"conv"} if block.pre_activation else {"conv", "bn"}
  wanted = {
    "identity": set(),
    "projection": learned,
    "projection_all": learned,
    "pooled": learned,
    "conv": {"conv"},
    "none": set(),
  }
  assert set(params.get("shortcut", {})) == wanted[kind]
  if kind == "conv":
    assert set(params["shortcut"]["conv"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
  ("kind", "learned"),
  [("projection", False), ("projection_all", True), ("conv", True)],
)
def test_which_shortcuts_are_learned_where_shapes_agree(kind, learned):
  _, params = run(BasicBlock(8, shortcut=kind))
  assert ("shortcut" in params) == learned


def test_option_a_subsamples_and_pads_channels_on_both_sides():
  y = Shortcut("identity", 12, 2).apply({}, X, train=False)
  np.testing.assert_array_equal(y[..., 2:10], X[:, ::2, ::2])
  np.testing.assert_array_equal(y[..., :2], 0)
  np.testing.assert_array_equal(y[..., 10:], 0)


def test_an_identity_cannot_drop_channels():
  with pytest.raises(ValueError, match="from 8 to 4 channels"):
    Shortcut("identity", 4).apply({}, X, train=False)


def test_the_bottleneck_strides_in_its_3x3():
  block = BottleneckBlock(4, 2)
  variables = block.init(jax.random.key(1), X, train=False)
  _, state = block.apply(
    variables, X, train=False, capture_intermediates=True, mutable=True
  )
  shapes = {
    name: value["__call__"][0].shape[1]
    for name, value in state["intermediates"].items()
    if name.startswith("conv")
  }
  assert shapes == {"conv1": 6, "conv2": 3, "conv3": 3}


def test_biases_are_an_option():
  _, params = run(BasicBlock(8, use_bias=True))
  assert params["conv1"].keys() == {"kernel", "bias"}
  _, params = run(BasicBlock(8))
  assert params["conv1"].keys() == {"kernel"}


def test_squeeze_and_excitation_weighs_channels():
  """In NumPy, with a width that is rounded up to 8."""
  module = SqueezeExcite(1 / 16)
  variables = module.init(jax.random.key(0), X)
  params = jax.tree.map(
    lambda p: normal(p.size, p.shape),
    variables["params"],
  )
  fc1, fc2 = (jax.tree.map(np.squeeze, params[name]) for name in ("fc1", "fc2"))
  assert fc1["kernel"].shape == (8, 8)
  means = np.asarray(X).mean((1, 2))
  squeezed = np.maximum(means @ fc1["kernel"] + fc1["bias"], 0)
  weights = 1 / (1 + np.exp(-(squeezed @ fc2["kernel"] + fc2["bias"])))
  np.testing.assert_allclose(
    module.apply({"params": params}, X), X * weights[:, None, None], rtol=1e-4
  )


def test_stochastic_depth_drops_examples_and_keeps_the_mean():
  f = jnp.ones((1000, 2, 2, 3))
  apply = lambda rate, train: StochasticDepth().apply(
    {}, f, rate, train=train, rngs={"dropout": jax.random.key(0)}
  )
  y = np.asarray(apply(0.25, True))
  assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
  # Whole examples go, about a quarter of them.
  assert np.all(np.ptp(y.reshape(1000, -1), axis=1) == 0)
  assert abs((y == 0).mean() - 0.25) < 0.05
  np.testing.assert_array_equal(apply(0.25, False), f)
  np.testing.assert_array_equal(apply(0.0, True), f)
