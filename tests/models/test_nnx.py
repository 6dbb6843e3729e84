from flax import nnx
import jax.numpy as jnp
import numpy as np
import optax

import flax_resnet as fr
from tests.drawing import normal


def test_a_network_trains_as_an_nnx_module():
  network = fr.create_model(
    "cifar_resnet20", num_classes=3, stage_sizes=(1,), stage_features=(4,)
  )
  model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0))
  images = normal(0, (4, 6, 6, 3))
  labels = jnp.array([0, 1, 2, 0])
  nnx.bridge.lazy_init(model, images, train=False)
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    def loss_fn(model):
      logits = model(images, train=True, mutable=["batch_stats"])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
      ).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss

  before = np.asarray(model.stem["bn"]["mean"][...])
  losses = [float(step(model, optimizer)) for _ in range(5)]
  assert losses[-1] < losses[0]
  assert np.abs(np.asarray(model.stem["bn"]["mean"][...]) - before).max() > 0
