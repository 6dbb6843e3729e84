"""Steps whose loss or gradient is not finite: they change nothing.

Whether it is so is found within the compiled step, which then keeps the state
that it was given. So no host has to wait for the device after every step: the
state says what has happened, and the run asks it when it logs, evaluates or
saves.
"""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_resnet.models.layers import at_least_float32
from flax_resnet.training.schema import RunError


class Faults(struct.PyTreeNode):
  """The steps of a run that were not finite.

  Attributes:
    count: How many there were, int32 [].
    step: The latest of them, from 1, int32 [].
    loss: Of that step, float32 [].
    norm: Length of its gradient over all parameters, float32 [].
  """

  count: jax.Array
  step: jax.Array
  loss: jax.Array
  norm: jax.Array


def none() -> Faults:
  """Returns those of a run that has not begun."""
  # Not one array four times: each is donated to the step.
  ints = [jnp.zeros((), jnp.int32) for _ in range(2)]
  return Faults(*ints, *(jnp.zeros((), jnp.float32) for _ in range(2)))


def settle(before: Any, after: Any, grads: Any, new: Any, limit: int) -> Any:
  """Returns the `TrainState` that a step ends with.

  It is `after` if the step was finite. If not, it is `before`, with one more
  completed step, so that the next one takes the next batch. The fault after
  `limit` others completes no step, and neither does any step from then on.

  Args:
    before: The state that the step was given.
    after: The state that it would leave.
    grads: Its gradients: they can be NaN where the loss is not, as of a number
      that overflows behind a ReLU.
    new: Its `metrics.Sums`.
    limit: How many steps may be skipped.
  """
  loss = (new["loss"] / new["count"]).astype(jnp.float32)
  norm, of_statistics = _norm(grads), _norm(after.batch_stats)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(of_statistics)
  limit = min(limit, jnp.iinfo(jnp.int32).max - 1)  # As far as it is counted.
  stands = before.faults.count > limit
  one_more = Faults(before.faults.count + 1, before.step + 1, loss, norm)
  faults = _select(finite | stands, before.faults, one_more)
  return _select(finite & ~stands, after, before).replace(
    step=before.step + (faults.count <= limit), faults=faults
  )


def check(faults: Faults, limit: int, rate: optax.Schedule) -> int:
  """Returns how many steps were skipped: waits for the device.

  Args:
    faults: Of the run's state.
    limit: How many steps may be skipped.
    rate: The learning rate after so many updates.

  Raises:
    RunError: When there were more.
  """
  found = jax.device_get(faults)
  count, step = int(found.count), int(found.step)
  if count <= limit:
    return count
  skipped = f", after {limit} that were skipped" if limit else ""
  its_rate = float(np.asarray(rate(step - count)))  # It follows the updates.
  raise RunError(
    f"step {step} is not finite{skipped}: loss {found.loss:g}, length of the "
    f"gradient {found.norm:g}, learning rate {its_rate:g}; nothing of it is "
    "saved and the checkpoints before it stay; try, in another --workdir, a "
    "lower config.optim.learning_rate, a longer config.optim.warmup, "
    "config.optim.clip_norm=1.0, or config.skip_nonfinite="
    f"{10 * max(limit, 1)} to skip so many such steps"
  )


def _norm(tree: Any) -> jax.Array:
  squares = [
    jnp.square(x.astype(at_least_float32(x.dtype))).sum()
    for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(jnp.asarray(sum(squares), jnp.float32))


def _select(first: jax.Array, one: Any, other: Any) -> Any:
  return jax.tree.map(functools.partial(jnp.where, first), one, other)
