"""Losses of a batch, one number an example."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float, Int
import optax

# Labels, or what each class shall have of each example.
Targets = Int[Array, " b"] | Float[Array, "b n"]
Loss = Callable[[Float[Array, "b n"], Targets], Float[Array, " b"]]


def make_loss(
  *,
  label_smoothing: float,
  name: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy",
  target_threshold: float | None = None,
) -> Loss:
  """Returns the loss of training; evaluation reports the cross-entropy.

  Args:
    label_smoothing: Share of the target that is spread evenly over all classes
      (Szegedy et al. 2015, section 7); 0 for none.
    name: "cross_entropy", or "binary_cross_entropy", which asks of each class
      by itself whether it is there, see `binary_cross_entropy`.
    target_threshold: Of "binary_cross_entropy": a class of which an image has
      more than this share is wholly there, any other not at all. None to take
      shares as they are. As timm's; with 0.2, as in commands that repeat A2 of
      "ResNet strikes back", a mixed image is of both of its classes.

  Raises:
    ValueError: When a number is not a share, or undoes another.
  """
  _check(name, label_smoothing, target_threshold)
  if name == "binary_cross_entropy":
    each = binary_cross_entropy
  elif not label_smoothing:
    return cross_entropy
  else:
    each = cross_entropy

  def loss(logits, targets):
    if targets.ndim == 1:
      targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing)
    if target_threshold is not None:
      targets = (targets > target_threshold).astype(logits.dtype)
    return each(logits, targets)

  return loss


def binary_cross_entropy(
  logits: Float[Array, "b n"], targets: Float[Array, "b n"]
) -> Float[Array, " b"]:
  """Returns the mean over classes of their binary cross-entropies, in nats.

  Wightman et al. 2021, https://arxiv.org/abs/2110.00476. The mean,
  and not the sum, is what their code (timm's `BinaryCrossEntropy`) takes.
  """
  return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def cross_entropy(
  logits: Float[Array, "b n"], targets: Targets
) -> Float[Array, " b"]:
  """Returns the cross-entropy of each example, in nats."""
  if targets.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return optax.softmax_cross_entropy(logits, targets)


def _check(name: str, smoothing: float, threshold: float | None) -> None:
  if not 0 <= smoothing < 1:
    raise ValueError(
      f"label_smoothing is {smoothing}: use 0 or more, less than 1"
    )
  if threshold is None:
    return
  if not 0 <= threshold < 1:
    raise ValueError(
      f"target_threshold is {threshold}: use 0 or more, less than 1, or None"
    )
  if name != "binary_cross_entropy":
    raise ValueError(
      f"target_threshold is {threshold}, which {name} has no use for: use None"
    )
  if smoothing:
    raise ValueError(
      f"target_threshold is {threshold}, which undoes label_smoothing "
      f"{smoothing}: use None, or label_smoothing=0.0"
    )
