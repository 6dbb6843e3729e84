"""Several steps by one call, over a data set that lies on the device.

The step of a small network is shorter than the way from Python to the device
and back. Here a call takes the indices of the records of many steps, and the
records are on the device already.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh
import numpy as np

from flax_resnet import sharding
from flax_resnet.data.datasets import Split
from flax_resnet.training.state import TrainState

# "records": whole arrays {"image": [n, h, w, c], "label": [n], "mask": [n]};
# "indices": int32 [b, k], those of the records of k steps;
# "count": int32 [], how many of these steps to do.
Call = dict[str, Any]


def repeat(
  train_step: Callable[[TrainState, dict[str, jax.Array]], TrainState],
  mesh: Mesh,
) -> Callable[[TrainState, Call], TrainState]:
  """Returns the function that does all the steps of a call.

  How many there are is known when it runs and not when it is compiled, so that
  a run has the same bits however its steps are spread over calls.
  """
  by_batch = sharding.split_by_batch(mesh)

  def train_steps(state: TrainState, call: Call) -> TrainState:
    def body(number, state):
      now = call["indices"][:, number]
      batch = {key: whole[now] for key, whole in call["records"].items()}
      return train_step(state, lax.with_sharding_constraint(batch, by_batch))

    return lax.fori_loop(0, call["count"], body, state)

  return train_steps


def calls(
  split: Split,
  mesh: Mesh,
  counts: Iterator[int],
  *,
  size: int,
  **where: Any,
) -> Iterator[tuple[Call, int]]:
  """Yields what `repeat`'s function takes, and the steps that it will do.

  Args:
    split: What to train on.
    mesh: Where its records and the state lie.
    counts: How many steps each call shall do.
    size: Steps that the indices of a call have room for.
    **where: See `pipeline.train_indices`.

  Raises:
    ValueError: When records are not always the same.
  """
  records = sharding.replicate(split.arrays(), mesh)
  stream = split.train_indices(**where)
  for count in counts:
    rows = [next(stream) for _ in range(count)]
    rows += rows[:1] * (size - count)  # Not looked at.
    indices = sharding.shard_batch({"indices": np.stack(rows, 1)}, mesh)
    yield {"records": records, "count": np.int32(count), **indices}, count
