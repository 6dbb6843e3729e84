"""The block of the study note, in PyTorch and here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import BasicBlock

torch = pytest.importorskip("torch")

from tests.weights.torch_models import NoteBlock  # noqa: E402 - imports torch

X = np.random.default_rng(3).normal(size=(4, 9, 10, 6)).astype(np.float32)
LAYERS = {
  ("conv1",): "c1",
  ("bn1",): "bn1",
  ("conv2",): "c2",
  ("bn2",): "bn2",
  ("shortcut", "conv"): "downsample",
}


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def to_flax(values):
  """Returns a tree of our names from "c1.weight" and the like."""
  tree = {}
  for path, theirs in LAYERS.items():
    node = tree
    for name in path:
      node = node.setdefault(name, {})
    weight = values[f"{theirs}.weight"]
    if weight.ndim == 4:
      node["kernel"] = jnp.asarray(weight.transpose(2, 3, 1, 0))
    else:
      node["scale"] = jnp.asarray(weight)
    node["bias"] = jnp.asarray(values[f"{theirs}.bias"])
  return tree


def statistics(module):
  return {
    name: {
      "mean": jnp.asarray(layer.running_mean.numpy().copy()),
      "var": jnp.asarray(layer.running_var.numpy().copy()),
    }
    for name, layer in (("bn1", module.bn1), ("bn2", module.bn2))
  }


def values_of(module):
  return {k: v.detach().numpy().copy() for k, v in module.named_parameters()}


@pytest.fixture
def module():
  torch.manual_seed(0)
  module = NoteBlock(6, 8)
  with torch.no_grad():
    for bn in (module.bn1, module.bn2):
      bn.weight.uniform_(0.5, 1.5)
      bn.bias.uniform_(-0.5, 0.5)
      bn.running_mean.uniform_(-0.5, 0.5)
      bn.running_var.uniform_(0.5, 1.5)
  return module


@pytest.mark.parametrize("train", [False, True])
def test_outputs_and_gradients(module, train):
  module.train(train)
  block = BasicBlock(8, shortcut="conv", use_bias=True)
  params, stats = to_flax(values_of(module)), statistics(module)
  x = nchw(X).requires_grad_()
  weights = np.random.default_rng(4).normal(size=(4, 9, 10, 8))
  weights = weights.astype(np.float32)

  def loss(params, x):
    y, _ = block.apply(
      {"params": params, "batch_stats": stats},
      x,
      train=train,
      mutable=["batch_stats"],
    )
    return (y * weights).sum(), y

  (grads, x_grad), ours = jax.grad(loss, (0, 1), has_aux=True)(params, X)
  theirs = module(x)
  (theirs * nchw(weights)).sum().backward()
  np.testing.assert_allclose(
    ours, theirs.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5
  )
  np.testing.assert_allclose(
    x_grad, x.grad.numpy().transpose(0, 2, 3, 1), atol=2e-4
  )
  wanted = to_flax(
    {k: v.grad.numpy().copy() for k, v in module.named_parameters()}
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, atol=1e-4 * max(1, float(jnp.abs(b).max()))
    ),
    grads,
    wanted,
  )


def test_running_statistics_after_five_steps(module):
  """PyTorch keeps the unbiased variance; so does our BatchNorm."""
  module.train()
  block = BasicBlock(8, shortcut="conv", use_bias=True)
  params, stats = to_flax(values_of(module)), statistics(module)
  rng = np.random.default_rng(5)
  for _ in range(5):
    x = rng.normal(1, 2, size=(2, 3, 3, 6)).astype(np.float32)
    module(nchw(x))
    _, updates = block.apply(
      {"params": params, "batch_stats": stats},
      jnp.asarray(x),
      train=True,
      mutable=["batch_stats"],
    )
    stats = updates["batch_stats"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    dict(stats),
    statistics(module),
  )
