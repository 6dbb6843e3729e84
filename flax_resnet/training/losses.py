"""Losses of a batch, one number an example."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

from flax_resnet.errors import listing
from flax_resnet.schema import NotNegative, Positive, Rate, Share

# Labels, or the share that each class has of each example.
Targets = Int[Array, " b"] | Float[Array, "b n"]
Loss = Callable[[Float[Array, "b n"], Targets], Float[Array, " b"]]
# The weight of each example by its targets.
Weigh = Callable[[Targets], Float[Array, " b"]]


def make_loss(
  *,
  label_smoothing: Rate = 0.0,
  name: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy",
  target_threshold: Rate | None = None,
  class_weights: Sequence[Positive] | Literal["balanced"] | None = None,
  focal_gamma: NotNegative = 0.0,
  focal_alpha: Share | None = None,
  multi_label: bool = False,
) -> Loss:
  """Returns the loss of training; evaluation reports the cross-entropy.

  Args:
    label_smoothing: weight of the uniform distribution in the targets, in
      [0, 1) (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, section 7);
      default 0. Of several labels an image, each class and its absence are
      smoothed by themselves: (1 - x) target + x / 2, as in Keras.
    name: "cross_entropy", the default, or "binary_cross_entropy", which asks of
      each class by itself whether the image shows it.
    target_threshold: share above which a class is wholly a target, and any
      other not at all, in [0, 1), of "binary_cross_entropy", as timm has it:
      with 0.2, as in A2 of "ResNet strikes back", a mixed image is of both of
      its classes. Default None: targets are shares.
    class_weights: factors of the classes in the loss, above 0, by label, or
      "balanced" for those of `balanced_weights`; default None. The loss of a
      step is then that of PyTorch: with "cross_entropy" a mean weighted by the
      classes of the targets (for mixed images too, where PyTorch divides by
      their number), with "binary_cross_entropy" the plain mean.
    focal_gamma: exponent of the focal loss, 0 or more: a class that is given
      the probability p of its target counts (1 - p)^gamma times (Lin et al.
      2017, https://arxiv.org/abs/1708.02002); default 0.
    focal_alpha: weight of the classes that are shown, in [0, 1], of those that
      are not 1 minus it, of "binary_cross_entropy", as torchvision's
      `sigmoid_focal_loss` has it; default None for none.
    multi_label: whether an image may have several labels, or none.

  Raises:
    ValueError: if a threshold or alpha has no effect, or undoes the smoothing;
      for "balanced", which only the data can say; for several labels an image
      with "cross_entropy".
  """
  binary = name == "binary_cross_entropy"
  if multi_label and not binary:
    raise ValueError(
      f"name is {name}, of which an image has one label, and the data have "
      "several: use binary_cross_entropy"
    )
  if target_threshold is not None and not binary:
    raise ValueError(
      f"target_threshold is {target_threshold}, which {name} has no use for: "
      "use None"
    )
  if focal_alpha is not None and not binary:
    raise ValueError(
      f"focal_alpha is {focal_alpha}, which {name} has no use for: use None, "
      "or class_weights"
    )
  if target_threshold is not None and label_smoothing:
    raise ValueError(
      f"target_threshold is {target_threshold}, which undoes label_smoothing "
      f"{label_smoothing}: use None, or label_smoothing=0.0"
    )
  if class_weights == "balanced":
    raise ValueError(
      "class_weights is balanced, for which the data must be known: use numbers"
    )
  plain = class_weights is None and not focal_gamma and focal_alpha is None
  if plain and not binary and not label_smoothing:
    return cross_entropy

  def loss(logits, targets):
    if targets.ndim == 1:
      targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    if multi_label:
      targets = (1 - label_smoothing) * targets + label_smoothing / 2
    else:
      targets = optax.smooth_labels(targets, label_smoothing)
    if target_threshold is not None:
      targets = (targets > target_threshold).astype(logits.dtype)
    if plain and binary:
      return binary_cross_entropy(logits, targets)
    if plain:
      return cross_entropy(logits, targets)
    if binary:
      terms = _binary_terms(logits, targets, focal_gamma, focal_alpha)
    else:
      terms = _terms(logits, targets, focal_gamma)
    if class_weights is not None:
      terms = terms * jnp.asarray(class_weights, terms.dtype)[None]
    return terms.mean(-1) if binary else terms.sum(-1)

  return loss


def make_weigh(class_weights: Sequence[float]) -> Weigh:
  """Returns the weight of each example: that of its class, or their mean.

  The loss of a step is divided by the mean of these, as PyTorch's
  `CrossEntropyLoss(weight=…)` divides by their sum. It is taken of the targets
  before they are smoothed.

  Args:
    class_weights: weights by label.
  """
  weights = np.asarray(class_weights, np.float32)

  def weigh(targets):
    if targets.ndim == 1:
      return jnp.asarray(weights)[targets]
    return (targets * jnp.asarray(weights, targets.dtype)[None]).sum(-1)

  return weigh


def balanced_weights(
  counts: Sequence[int], class_names: Sequence[str]
) -> tuple[float, ...]:
  """Returns n / (classes * count) for each class, as scikit-learn does.

  Args:
    counts: number of records of each class, by label.
    class_names: names of the classes, by label.

  Raises:
    ValueError: if a class has no record.
  """
  named = zip(class_names, counts, strict=True)
  if empty := [name for name, count in named if not count]:
    raise ValueError(
      f"class_weights is balanced, and there is no record of {listing(empty)}: "
      "use numbers"
    )
  return tuple(sum(counts) / (len(counts) * count) for count in counts)


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


def _terms(
  logits: Float[Array, "b n"], targets: Float[Array, "b n"], gamma: float
) -> Float[Array, "b n"]:
  """Returns what each class adds to the (focal) cross-entropy."""
  log_p = jax.nn.log_softmax(logits)
  return -targets * log_p * _focus(jnp.exp(log_p), gamma)


def _binary_terms(
  logits: Float[Array, "b n"],
  targets: Float[Array, "b n"],
  gamma: float,
  alpha: float | None,
) -> Float[Array, "b n"]:
  """Returns the (focal) binary cross-entropy of each class."""
  p = jax.nn.sigmoid(logits)
  terms = optax.sigmoid_binary_cross_entropy(logits, targets)
  terms = terms * _focus(p * targets + (1 - p) * (1 - targets), gamma)
  if alpha is not None:
    terms = terms * (alpha * targets + (1 - alpha) * (1 - targets))
  return terms


def _focus(p: Float[Array, "b n"], gamma: float) -> Float[Array, "b n"] | float:
  """Returns (1 - p)^gamma, with a slope that is finite where p is 1."""
  if not gamma:
    return 1.0
  return jnp.maximum(1 - p, jnp.finfo(p.dtype).eps) ** gamma
