"""A ResNet of linen in a project of Flax NNX: trained on digits.

    python examples/nnx.py

Measured: 96.39 % on the 360 test digits after 300 steps without augmentation, a
quarter of a minute on 2 CPU cores; one seed.
"""

import argparse

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import flax_resnet as fr

NUM_TRAIN = 1437  # The rest are of other writers.


class Classifier(nnx.Module):
  """An NNX module with a ResNet inside and a head of its own.

  Attributes:
    trunk: The ResNet, bridged.
    head: From its pooled features to logits.
  """

  def __init__(self, rngs: nnx.Rngs):
    trunk = fr.create_model(
      "cifar_resnet8", stage_features=(32, 64, 128), num_classes=0
    )
    self.trunk = nnx.bridge.ToNNX(trunk, rngs=rngs)
    # Draws the parameters: the bridge learns their shapes from an image.
    nnx.bridge.lazy_init(self.trunk, jnp.zeros((1, 8, 8, 1)), train=False)
    self.head = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    # The new batch_stats stay in the bridge.
    mutable = {"mutable": ["batch_stats"]} if train else {}
    return self.head(self.trunk(images, train=train, **mutable))


def main() -> None:
  """Trains, and prints the accuracy on the test digits."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()

  images, labels = datasets.load_digits(return_X_y=True)
  images = (images.reshape(-1, 8, 8, 1).astype(np.float32) / 16 - 0.3) / 0.35
  model = Classifier(nnx.Rngs(flags.seed))
  schedule = optax.cosine_onecycle_schedule(flags.steps, 0.1)
  optimizer = nnx.Optimizer(
    model, optax.sgd(schedule, momentum=0.9, nesterov=True), wrt=nnx.Param
  )

  @nnx.jit
  def step(model, optimizer, images, labels):
    def loss_fn(model):
      logits = model(images, train=True)
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
      ).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss

  @nnx.jit
  def predict(model, images):
    return model(images, train=False).argmax(-1)

  rng = np.random.default_rng(flags.seed)
  for number in range(1, flags.steps + 1):
    chosen = rng.choice(NUM_TRAIN, flags.batch_size, replace=False)
    loss = step(model, optimizer, images[chosen], labels[chosen])
    if number % 50 == 0:
      print(f"step {number:3}  loss {loss:.4f}")
  top1 = np.mean(predict(model, images[NUM_TRAIN:]) == labels[NUM_TRAIN:])
  print(f"{top1:.2%} of the {len(labels) - NUM_TRAIN} test digits")


if __name__ == "__main__":
  main()
