"""The ResNet of Flax's ImageNet example, re-described for comparison.

The same operations as https://github.com/google/flax/tree/main/examples/imagenet
(models.py and the body of train_step in train.py): `nn.Conv` with "SAME"
padding, `nn.BatchNorm` with momentum 0.9, `nn.max_pool`, momentum SGD, L2 decay
within the loss, metrics of the batch. Added: its ResNet behind a 3x3 stem with
zero-padded identity shortcuts, for CIFAR's nets.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax


class Block(nn.Module):
  features: int
  strides: int
  bottleneck: bool
  identity: bool
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x):
    strides = (self.strides, self.strides)
    if self.bottleneck:
      y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
      y = nn.relu(self.norm()(self.conv(self.features, (3, 3), strides)(y)))
      y = self.conv(4 * self.features, (1, 1))(y)
    else:
      y = nn.relu(self.norm()(self.conv(self.features, (3, 3), strides)(x)))
      y = self.conv(self.features, (3, 3))(y)
    y = self.norm(scale_init=nn.initializers.zeros_init())(y)
    if x.shape != y.shape and self.identity:
      missing = (y.shape[-1] - x.shape[-1]) // 2
      x = x[:, :: self.strides, :: self.strides]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing, missing)))
    elif x.shape != y.shape:
      x = self.norm(name="norm_proj")(
        self.conv(y.shape[-1], (1, 1), strides, name="conv_proj")(x)
      )
    return nn.relu(x + y)


class ResNet(nn.Module):
  stage_sizes: Sequence[int]
  widths: Sequence[int]
  bottleneck: bool
  cifar: bool
  num_classes: int
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train: bool):
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    if self.cifar:
      x = nn.relu(norm(name="bn_init")(conv(self.widths[0], (3, 3))(x)))
    else:
      padding = [(3, 3), (3, 3)]
      x = conv(self.widths[0], (7, 7), (2, 2), padding, name="conv_init")(x)
      x = nn.relu(norm(name="bn_init")(x))
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    for stage, (size, width) in enumerate(
      zip(self.stage_sizes, self.widths, strict=True)
    ):
      for block in range(size):
        strides = 2 if stage and not block else 1
        x = Block(width, strides, self.bottleneck, self.cifar, conv, norm)(x)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def make_train_step(model: ResNet, learning_rate: float):
  """Returns (optimizer, jitted step on [params, batch_stats, opt_state])."""
  optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)

  def loss_fn(params, batch_stats, batch):
    logits, updates = model.apply(
      {"params": params, "batch_stats": batch_stats},
      batch["image"],
      train=True,
      mutable=["batch_stats"],
    )
    one_hot = jax.nn.one_hot(batch["label"], model.num_classes)
    loss = optax.softmax_cross_entropy(logits, one_hot).mean()
    kernels = (p for p in jax.tree.leaves(params) if p.ndim > 1)
    decay = 0.5 * 1e-4 * sum(jnp.sum(p**2) for p in kernels)
    return loss + decay, (updates["batch_stats"], logits, loss)

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(state, batch):
    params, batch_stats, opt_state = state
    grads, (batch_stats, logits, loss) = jax.grad(loss_fn, has_aux=True)(
      params, batch_stats, batch
    )
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
    return [params, batch_stats, opt_state], (loss, accuracy)

  return optimizer, train_step
