"""Losses of a batch, one number an example."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float, Int
import optax

from flax_resnet.schema import Rate

# Labels, or the share that each class has of each example.
Targets = Int[Array, " b"] | Float[Array, "b n"]
Loss = Callable[[Float[Array, "b n"], Targets], Float[Array, " b"]]


def make_loss(
  *,
  label_smoothing: Rate = 0.0,
  name: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy",
  target_threshold: Rate | None = None,
) -> Loss:
  """Returns the loss of training; evaluation reports the cross-entropy.

  Args:
    label_smoothing: weight of the uniform distribution in the targets, in
      [0, 1) (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, section 7);
      default 0.
    name: "cross_entropy", the default, or "binary_cross_entropy", which asks of
      each class by itself whether the image shows it.
    target_threshold: share above which a class is wholly a target, and any
      other not at all, in [0, 1), of "binary_cross_entropy", as timm has it:
      with 0.2, as in A2 of "ResNet strikes back", a mixed image is of both of
      its classes. Default None: targets are shares.

  Raises:
    ValueError: if a threshold has no effect, or undoes the smoothing.
  """
  if target_threshold is not None and name != "binary_cross_entropy":
    raise ValueError(
      f"target_threshold is {target_threshold}, which {name} has no use for: "
      "use None"
    )
  if target_threshold is not None and label_smoothing:
    raise ValueError(
      f"target_threshold is {target_threshold}, which undoes label_smoothing "
      f"{label_smoothing}: use None, or label_smoothing=0.0"
    )
  if name == "cross_entropy" and not label_smoothing:
    return cross_entropy

  def loss(logits, targets):
    if targets.ndim == 1:
      targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing)
    if target_threshold is not None:
      targets = (targets > target_threshold).astype(logits.dtype)
    if name == "binary_cross_entropy":
      return binary_cross_entropy(logits, targets)
    return cross_entropy(logits, targets)

  return loss


def cross_entropy(
  logits: Float[Array, "b n"], targets: Targets
) -> Float[Array, " b"]:
  """Returns the cross-entropy of each example, in nats."""
  if targets.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return optax.softmax_cross_entropy(logits, targets)


def binary_cross_entropy(
  logits: Float[Array, "b n"], targets: Float[Array, "b n"]
) -> Float[Array, " b"]:
  """Returns the mean over classes of their binary cross-entropies, in nats.

  Wightman et al. 2021, https://arxiv.org/abs/2110.00476. The mean, and not the
  sum, is what their code (timm's `BinaryCrossEntropy`) takes.
  """
  return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
