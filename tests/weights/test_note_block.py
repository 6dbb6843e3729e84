"""The block of the study note, in PyTorch and here."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import BasicBlock

# The arrays of our block, by their names in `torch_models.NoteBlock`.
LAYERS = {
  "c1": ("conv1",),
  "bn1": ("bn1",),
  "c2": ("conv2",),
  "bn2": ("bn2",),
  "downsample": ("shortcut", "conv"),
}


def in_flax(tensors):
  """Returns a tree from "c1.weight" and the like."""
  arrays = {}
  for name, tensor in tensors.items():
    layer, array = name.split(".")
    value = tensor.detach().numpy().copy()
    if array == "weight":
      array = "kernel" if value.ndim == 4 else "scale"
    if value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
    path = (*LAYERS[layer], array.removeprefix("running_"))
    arrays[path] = jnp.asarray(value)
  return traverse_util.unflatten_dict(arrays)


def nhwc(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.deep
@pytest.mark.parametrize("train", [False, True])
def test_outputs_and_gradients(train):
  torch = pytest.importorskip("torch")
  from tests.weights.torch_models import NoteBlock

  torch.manual_seed(0)
  theirs = NoteBlock(6, 8).train(train)
  for bn in (theirs.bn1, theirs.bn2):
    for tensor in (bn.weight.data, bn.bias.data, bn.running_mean):
      tensor.uniform_(0.5, 1.5)
    bn.running_var.uniform_(0.5, 1.5)
  params = in_flax(dict(theirs.named_parameters()))
  stats = in_flax({k: v for k, v in theirs.named_buffers() if "running" in k})
  x = torch.randn(4, 6, 9, 10, requires_grad=True)
  weights = torch.randn(4, 8, 9, 10)
  y = theirs(x)
  (y * weights).sum().backward()

  @jax.jit
  def loss(params, x):
    block = BasicBlock(8, shortcut="conv", use_bias=True)
    variables = {"params": params, "batch_stats": stats}
    y, _ = block.apply(variables, x, train=train, mutable=["batch_stats"])
    return (y * nhwc(weights)).sum(), y

  (grads, x_grad), ours = jax.grad(loss, (0, 1), has_aux=True)(params, nhwc(x))
  np.testing.assert_allclose(ours, nhwc(y), atol=1e-5)
  np.testing.assert_allclose(x_grad, nhwc(x.grad), atol=2e-4)
  expected = in_flax({k: v.grad for k, v in theirs.named_parameters()})
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, atol=1e-4 * max(1, float(jnp.abs(b).max()))
    ),
    grads,
    expected,
  )
