"""Losses of a batch, one number an example."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int
import optax

# Labels, or what each class shall have of each example.
Targets = Int[Array, " b"] | Float[Array, "b n"]
Loss = Callable[[Float[Array, "b n"], Targets], Float[Array, " b"]]


def make_loss(*, label_smoothing: float) -> Loss:
  """Returns the cross-entropy.

  Args:
    label_smoothing: Share of the target that is spread evenly over all classes
      (Szegedy et al. 2015, section 7); 0 for none.

  Raises:
    ValueError: When `label_smoothing` is not a share.
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f"label_smoothing is {label_smoothing}: use 0 or more, less than 1"
    )
  if not label_smoothing:
    return cross_entropy

  def loss(logits, targets):
    if targets.ndim == 1:
      targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(
      logits, optax.smooth_labels(targets, label_smoothing)
    )

  return loss


def cross_entropy(
  logits: Float[Array, "b n"], targets: Targets
) -> Float[Array, " b"]:
  """Returns the cross-entropy of each example, in nats."""
  if targets.ndim == 1:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return optax.softmax_cross_entropy(logits, targets)
