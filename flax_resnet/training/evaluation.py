"""Exact evaluation: every example counts once, whatever the batch size."""

from collections.abc import Iterable, Mapping

from jax.sharding import Mesh
import numpy as np

from flax_resnet import sharding
from flax_resnet.training import metrics
from flax_resnet.training.state import TrainState
from flax_resnet.training.steps import EvalStep


def evaluate(
  eval_step: EvalStep,
  state: TrainState,
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> dict[str, float]:
  """Returns the means over the examples that the batches' masks mark.

  Args:
    eval_step: See `steps.make_eval_step`.
    state: What to evaluate.
    batches: This host's part of each, see `pipeline.eval_batches`.
    mesh: Where to compute.

  Returns:
    "val/loss", "val/top1", "val/top5", and "val/count", how many there were.
  """
  total = metrics.zeros()
  for batch in batches:
    total = eval_step(state, total, sharding.shard_batch(batch, mesh))
  return {f"val/{key}": mean for key, mean in metrics.means(total).items()}
