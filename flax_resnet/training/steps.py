"""One update: a pure function of (state, batch) under one `jax.jit`."""

from collections.abc import Callable
import contextlib
import ctypes
import dataclasses
import functools
import sys
from typing import Any, cast

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from flax_resnet import sharding
from flax_resnet.augment import Augment
from flax_resnet.errors import RunError
from flax_resnet.models import ResNet
from flax_resnet.models.norms import at_least_float32
from flax_resnet.training import losses, metrics
from flax_resnet.training.accumulation import accumulate_gradients
from flax_resnet.training.freezing import Freezing, NOTHING
from flax_resnet.training.state import NonFinite, TrainState, update_average

Batch = dict[str, jax.Array]
# For several steps by one call: "records", whole arrays {"image": [n, h, w, c],
# "label": [n], "mask": [n]}; "indices", int32 [b, k], the records of k steps;
# "count", int32 [], the number of steps to do.
ManySteps = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
  """The update of a run: (state, batch) -> state.

  Attributes:
    model: the network.
    optimizer: optimizer of the trained parameters.
    augment: augmentation of a whole batch, see `augment.make_augment`.
    loss: loss of each example, see `losses.make_loss`.
    weigh: weight of each example by its targets, see `losses.make_weigh`; the
      loss of a step is divided by their mean over the whole batch. None
      (default) for none.
    mesh: the devices.
    seed: seed of all random numbers, which depend on it and the step alone.
    accumulate: number of parts of the batch that are computed one after the
      other; default 1.
    group_size: number of examples that no part divides, see
      `accumulation.accumulation_group_size`; default 1.
    ema_decay: share of the moving average that an update keeps, in [0, 1).
    ema_every: number of steps between two updates of the moving average.
    ema_warmup: whether the average keeps less of itself at first.
    freezing: what of the network is not trained, and until which step; default
      nothing.
    skip_nonfinite: number of steps that may be skipped as they are not finite.
  """

  model: ResNet
  optimizer: optax.GradientTransformation
  augment: Augment
  loss: losses.Loss
  mesh: Mesh
  seed: int = 0
  accumulate: int = 1
  group_size: int = 1
  ema_decay: float = 0.0
  ema_every: int = 1
  ema_warmup: bool = False
  weigh: losses.Weigh | None = None
  freezing: Freezing = NOTHING
  skip_nonfinite: int = 0

  def __call__(self, state: TrainState, batch: Batch) -> TrainState:
    """Returns the state after one more update."""
    if self.freezing.until is None:
      return self._update(self.freezing, state, batch)
    # Both are in one program, so that neither the loop nor a run that goes on
    # has to know which of them is next.
    return lax.cond(
      state.step < self.freezing.until,
      functools.partial(self._update, self.freezing),
      functools.partial(self._update, NOTHING),
      state,
      batch,
    )

  def _update(
    self, freezing: Freezing, state: TrainState, batch: Batch
  ) -> TrainState:
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    images, targets = self.augment(
      key, batch["image"], batch["label"], state.step
    )
    batch = {**batch, "image": images, "target": targets}
    if self.weigh is not None:
      # Of the whole batch, so that its parts may be of other classes.
      mean = self.weigh(targets).mean()
      batch["scale"] = jnp.broadcast_to(1 / mean, len(images))
    gradients = accumulate_gradients(
      functools.partial(self._gradients, freezing, state),
      self.accumulate,
      self.group_size,
      self.mesh,
    )
    grads, batch_stats, sums = gradients(jax.random.fold_in(key, 1), batch)
    trained = freezing.trained(state.params)
    updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
    trained = cast(dict, optax.apply_updates(trained, updates))
    after = state.replace(
      step=state.step + 1,
      params={**state.params, **trained},
      batch_stats={**state.batch_stats, **batch_stats},
      opt_state=opt_state,
      sums=metrics.add(state.sums, sums),
    )
    if state.average:
      average = update_average(
        after.average,
        after.variables,
        after.step,
        decay=self.ema_decay,
        every=self.ema_every,
        warmup=self.ema_warmup,
      )
      after = after.replace(average=average)
    return finite_or_before(state, after, grads, sums, self.skip_nonfinite)

  def _gradients(
    self, freezing: Freezing, state: TrainState, key: jax.Array, batch: Batch
  ):
    """Returns gradients, new running statistics and sums of the metrics."""
    mode = freezing.mode()

    def loss_fn(trained):
      params = {**state.params, **trained}
      logits, updates = self.model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        mutable=["batch_stats"] if mode["train"] else [],
        rngs={"dropout": key},
        **mode,
      )
      each = self.loss(logits, batch["target"])
      if "scale" in batch:
        each = each * batch["scale"]
      batch_stats = freezing.moving(updates.get("batch_stats") or {})
      return each.mean(), (each, logits, batch_stats)

    grads, (each, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
      freezing.trained(state.params)
    )
    sums = metrics.sums(each, logits, batch["label"], batch["mask"])
    return grads, batch_stats, sums

  def jit(self, steps_per_call: int = 1) -> jax.stages.Wrapped:
    """Returns the compiled update, which takes the memory of its state.

    Args:
      steps_per_call: if more than 1, the function takes `ManySteps` and not a
        batch, and does up to so many steps. The number of steps is known when
        it runs and not when it is compiled, so that a run has the same bits
        however its steps are spread over calls.
    """
    by_batch = sharding.split_by_batch(self.mesh)

    def train_steps(state: TrainState, call: ManySteps) -> TrainState:
      def body(number, state):
        indices = call["indices"][:, number]
        batch = {key: all[indices] for key, all in call["records"].items()}
        return self(state, lax.with_sharding_constraint(batch, by_batch))

      return lax.fori_loop(0, call["count"], body, state)

    def train_step(state: TrainState, batch: Batch) -> TrainState:
      return self(state, batch)

    return jax.jit(
      train_step if steps_per_call == 1 else train_steps,
      donate_argnums=0,
      out_shardings=sharding.replicated(self.mesh),
    )


class CompiledByShape:
  """A jitted step, compiled ahead of its first call for each shape of batch.

  Args:
    jitted: (state, batch) -> state.
    paused: context manager, given the state, in which it is compiled.
  """

  def __init__(
    self,
    jitted: jax.stages.Wrapped,
    paused: Callable[[Any], contextlib.AbstractContextManager[None]],
  ):
    self._jitted, self._paused = jitted, paused
    self._shapes, self._compiled = None, None

  def __call__(self, state: TrainState, batch: Any) -> TrainState:
    shapes = jax.tree.map(jnp.shape, batch)
    if self._compiled is None or shapes != self._shapes:
      with self._paused(state):
        self._compiled = self._jitted.lower(state, batch).compile()
        _trim_heap()
      self._shapes = shapes
    # A step that waited for the host, or sent it anything, would be slow
    # without a word.
    with jax.transfer_guard("disallow"):
      return self._compiled(state, batch)


def _trim_heap() -> None:
  """Returns to the system what the heap holds and nobody uses.

  What the compiler leaves there is as much as a step of a small network takes,
  and glibc would keep it for as long as the process lives.
  """
  if sys.platform == "linux":
    with contextlib.suppress(AttributeError):  # Of another C library.
      ctypes.CDLL(None).malloc_trim(0)


def finite_or_before(
  before: TrainState,
  after: TrainState,
  grads: Any,
  sums: metrics.Sums,
  limit: int,
) -> TrainState:
  """Returns the state that a step ends with: `after` if the step was finite.

  If not, it is `before` with one more completed step, so that the next one
  takes the next batch. The one after `limit` others completes no step, and
  neither does any step from then on. All of it is found within the compiled
  step, so no host waits for the device after every step: `check_finite` asks
  the state when the run logs, evaluates or saves.

  Args:
    before: state that the step was given.
    after: state that it would leave.
    grads: gradients of the step: they can be NaN where the loss is not, as of a
      number that overflows behind a ReLU.
    sums: sums of the metrics of the step.
    limit: number of steps that may be skipped.
  """
  loss = (sums["loss"] / sums["count"]).astype(jnp.float32)
  norm, norm_of_stats = _norm(grads), _norm(after.batch_stats)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(norm_of_stats)
  limit = min(limit, jnp.iinfo(jnp.int32).max - 1)  # As far as it is counted.
  ended = before.nonfinite.count > limit
  one_more = NonFinite(before.nonfinite.count + 1, before.step + 1, loss, norm)
  nonfinite = _select(finite | ended, before.nonfinite, one_more)
  return _select(finite & ~ended, after, before).replace(
    step=before.step + (nonfinite.count <= limit), nonfinite=nonfinite
  )


def check_finite(nonfinite: NonFinite, limit: int, rate: optax.Schedule) -> int:
  """Returns how many steps were skipped: waits for the device.

  Args:
    nonfinite: record of the run's state.
    limit: number of steps that may be skipped.
    rate: learning rate after so many updates.

  Raises:
    RunError: if there were more.
  """
  found = jax.device_get(nonfinite)
  count, step = int(found.count), int(found.step)
  if count <= limit:
    return count
  skipped = f", after {limit} that were skipped" if limit else ""
  learning_rate = float(np.asarray(rate(step - count)))  # After the updates.
  raise RunError(
    f"step {step} is not finite{skipped}: loss {found.loss:g}, length of the "
    f"gradient {found.norm:g}, learning rate {learning_rate:g}; nothing of it "
    "is saved and the checkpoints before it stay; try, in another --workdir, a "
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


def _select(condition: jax.Array, one: Any, other: Any) -> Any:
  return jax.tree.map(functools.partial(jnp.where, condition), one, other)
