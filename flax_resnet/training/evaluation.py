"""Exact evaluation: every example counts once, whatever the batch size."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
from jax.sharding import Mesh
import numpy as np

from flax_resnet import sharding
from flax_resnet.augment import Normalize
from flax_resnet.errors import InputError
from flax_resnet.models import ResNet
from flax_resnet.training import losses, metrics
from flax_resnet.training.steps import Batch

# Means by their keys in a row of the log.
Means = dict[str, float]


def make_eval_step(
  model: ResNet, normalize: Normalize, *, mesh: Mesh
) -> jax.stages.Wrapped:
  """Returns the jitted function that adds a batch to the sums.

  Args:
    model: the network.
    normalize: normalization of uint8 images.
    mesh: the devices.

  Returns:
    (variables, sums, batch) -> sums.
  """

  def eval_step(
    variables: Any, total: metrics.Sums, batch: Batch
  ) -> metrics.Sums:
    images = normalize(batch["image"])
    logits = cast(jax.Array, model.apply(variables, images, train=False))
    each = losses.cross_entropy(logits, batch["label"])
    sums = metrics.sums(each, logits, batch["label"], batch["mask"])
    return metrics.add(total, sums)

  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def evaluate(
  eval_step: jax.stages.Wrapped,
  variables: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> Means:
  """Returns the means over the examples that the masks of the batches mark.

  Args:
    eval_step: see `make_eval_step`.
    variables: {"params": …, "batch_stats": …}, on all devices.
    batches: this host's part of each batch, see `data.Split.eval_batches`.
    mesh: the devices.

  Returns:
    "val/loss" in nats, "val/top1" and "val/top5" in [0, 1], and "val/count",
    the number of examples; of none, the means are NaN.
  """
  return evaluate_each(eval_step, {"": variables}, batches, mesh)[""]


def evaluate_each(
  eval_step: jax.stages.Wrapped,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> dict[str, Means]:
  """Returns what `evaluate` does, of several variables, reading images once.

  Args:
    eval_step: see `make_eval_step`.
    variables: variables by any name.
    batches: as in `evaluate`.
    mesh: the devices.
  """
  totals = {
    name: sharding.replicate(metrics.zeros(), mesh) for name in variables
  }
  for batch in batches:
    sharded = sharding.shard_batch(batch, mesh)
    for name, total in totals.items():
      totals[name] = eval_step(variables[name], total, sharded)
  return {
    name: {f"val/{key}": mean for key, mean in metrics.means(total).items()}
    for name, total in totals.items()
  }


def beside(average: Means, raw: Means) -> Means:
  """Returns the means of an average with those of the raw variables beside.

  "val/raw_top1" is that of the raw ones; there is one "val/count".
  """
  return average | {
    key.replace("val/", "val/raw_"): mean
    for key, mean in raw.items()
    if key in ("val/loss", "val/top1", "val/map")
  }


def check_counted(result: Mapping[str, float]) -> None:
  """Raises InputError for means over nothing, see `evaluate`."""
  if not result["val/count"]:
    raise InputError(
      "config.data: no image of eval_split can be read: on_error='stop' names "
      "the first of them"
    )
