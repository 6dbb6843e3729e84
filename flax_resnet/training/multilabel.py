"""Evaluation where an image may have several labels, or none.

Of each class it is asked by itself whether an image shows it, so there is no
accuracy of the first answer: the images are ranked by their scores, class by
class, and the ranking is judged.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast
import warnings

import jax
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
import numpy as np

from flax_resnet import sharding
from flax_resnet.augment import Normalize
from flax_resnet.models import ResNet
from flax_resnet.training import losses
from flax_resnet.training.evaluation import Means
from flax_resnet.training.steps import Batch


def make_eval_step(
  model: ResNet, normalize: Normalize, *, mesh: Mesh
) -> jax.stages.Wrapped:
  """Returns the jitted function that scores a batch.

  Args:
    model: the network.
    normalize: normalization of uint8 images.
    mesh: the devices.

  Returns:
    (variables, batch) -> {"logits": float [b, n], "loss": float [b], "label":
    uint8 [b, n], "mask": bool [b]}, each whole on every device.
  """

  def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
    images = normalize(batch["image"])
    logits = cast(jax.Array, model.apply(variables, images, train=False))
    targets = batch["label"].astype(logits.dtype)
    loss = losses.binary_cross_entropy(logits, targets)
    rest = {key: batch[key] for key in ("label", "mask")}
    return {"logits": logits, "loss": loss, **rest}

  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def evaluate_each(
  eval_step: jax.stages.Wrapped,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> dict[str, Means]:
  """Returns what `evaluation.evaluate_each` does, of several labels an image.

  Args:
    eval_step: see `make_eval_step`.
    variables: variables by any name.
    batches: as in `evaluation.evaluate`.
    mesh: the devices.

  Returns:
    By the names of the variables "val/loss", the binary cross-entropy in nats,
    "val/map", the mean over classes of `average_precision`, and "val/count",
    the number of examples.
  """
  scores = score_each(eval_step, variables, batches, mesh)
  return {name: means(found) for name, found in scores.items()}


def means(scores: Mapping[str, np.ndarray]) -> Means:
  """Returns the means that `evaluate_each` does, from those of `score_each`."""
  count = len(scores["loss"])
  return {
    "val/loss": float(scores["loss"].mean(dtype=float)) if count else np.nan,
    "val/map": mean_average_precision(scores["logits"], scores["label"]),
    "val/count": count,
  }


def score_each(
  eval_step: jax.stages.Wrapped,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns logits, losses and labels of all examples, for each variables.

  In memory these take 5 bytes a class and example.

  Args:
    eval_step: see `make_eval_step`.
    variables: variables by any name.
    batches: as in `evaluate_each`.
    mesh: the devices.

  Returns:
    By name {"logits": float [n, classes], "loss": float [n], "label": uint8
    [n, classes]}.
  """
  parts = {name: [] for name in variables}
  for batch in batches:
    sharded = sharding.shard_batch(batch, mesh)
    for name in variables:
      found = jax.device_get(eval_step(variables[name], sharded))
      mask = found.pop("mask")
      parts[name].append({key: value[mask] for key, value in found.items()})
  return {
    name: {key: np.concatenate([p[key] for p in some]) for key in some[0]}
    for name, some in parts.items()
  }


def average_precision(
  scores: Float[np.ndarray, "n classes"], labels: UInt8[np.ndarray, "n classes"]
) -> Float[np.ndarray, " classes"]:
  """Returns the average precision of each class, as scikit-learn has it.

  Examples of one score are taken together. It is the sum of the precisions at
  each threshold, weighted by the growth of the recall; NaN for a class that no
  example has, or with a score that is not finite.

  Args:
    scores: scores that rank the examples of a class; logits rank as their
      probabilities do, and finer where these round to 1.
    labels: 1 where an example has the class, else 0.
  """
  found = np.full(scores.shape[1], np.nan)
  for number, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
    if not label.any() or not np.isfinite(score).all():
      continue
    order = np.argsort(-score, kind="stable")
    score, label = score[order], label[order].astype(np.float64)
    last = np.append(score[1:] != score[:-1], True)  # Of those of one score.
    right = label.cumsum()[last]
    precision = right / (np.flatnonzero(last) + 1)
    found[number] = (np.diff(right, prepend=0) * precision).sum() / right[-1]
  return found


def mean_average_precision(
  scores: Float[np.ndarray, "n classes"], labels: UInt8[np.ndarray, "n classes"]
) -> float:
  """Returns the mean over the classes that an example has; NaN if none.

  One class with a score that is not finite makes all of it NaN.
  """
  if not np.isfinite(scores).all():
    return float("nan")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # Of no class at all.
    return float(np.nanmean(average_precision(scores, labels)))
