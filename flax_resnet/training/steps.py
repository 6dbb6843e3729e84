"""One update and one evaluation step: pure functions of state and batch."""

import functools
from typing import cast

import jax
from jax.sharding import Mesh
import optax

from flax_resnet import sharding
from flax_resnet.data.augment import Augment, Normalize
from flax_resnet.models import operations, ResNet
from flax_resnet.training import (
  accumulation,
  averaging,
  faults,
  losses,
  metrics,
  resident,
)
from flax_resnet.training.state import AveragedState, trained_part, TrainState

Batch = dict[str, jax.Array]
TrainStep = jax.stages.Wrapped  # (state, batch) -> state; or (state, call)
EvalStep = jax.stages.Wrapped  # (state, sums, batch) -> sums


def make_train_step(
  model: ResNet,
  optimizer: optax.GradientTransformation,
  augment: Augment,
  loss: losses.Loss,
  *,
  seed: int,
  mesh: Mesh,
  steps_per_call: int = 1,
  accumulate: int = 1,
  group_size: int = 1,
  ema_decay: float = 0.0,
  ema_every: int = 1,
  freeze_trunk: bool = False,
  skip_nonfinite: int = 0,
) -> TrainStep:
  """Returns the jitted update; it takes the state's memory (donation).

  Args:
    model: The network.
    optimizer: Of its parameters.
    augment: What is done to a whole batch, see `augment.make_augment`.
    loss: Of each example.
    seed: Of all that is drawn at random.
    mesh: The devices.
    steps_per_call: With more than 1, it takes what `resident.calls` yields.
    accumulate: Parts of the batch that are looked at one after the other.
    group_size: Examples that no part divides, see `accumulation.kept_together`.
    ema_decay: Of an `AveragedState`, see `averaging.follow`.
    ema_every: Likewise.
    freeze_trunk: If so, nothing is computed backwards through the trunk.
    skip_nonfinite: Steps that may be skipped, see `faults.settle`.
  """

  def gradients(state: TrainState, key: jax.Array, batch: Batch):
    def loss_fn(trained):
      params = {**state.params, **trained}
      logits, updates = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        train=not freeze_trunk,
        mutable=[] if freeze_trunk else ["batch_stats"],
        rngs={"dropout": key},
      )
      each = loss(logits, batch["target"])
      return each.mean(), (each, logits, updates.get("batch_stats", {}))

    grads, (each, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
      trained_part(state.params, freeze_trunk)
    )
    new = metrics.sums(each, logits, batch["label"], batch["mask"])
    return grads, batch_stats, new

  def train_step(state: TrainState, batch: Batch) -> TrainState:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    images, targets = augment(key, batch["image"], batch["label"])
    of_parts = accumulation.in_parts(
      functools.partial(gradients, state), accumulate, group_size, mesh
    )
    grads, batch_stats, new = of_parts(
      jax.random.fold_in(key, 1),
      {**batch, "image": images, "target": targets},
    )
    trained = trained_part(state.params, freeze_trunk)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = cast(dict, optax.apply_updates(trained, updates))
    after = state.replace(
      step=state.step + 1,
      params={**state.params, **trained},
      batch_stats={**state.batch_stats, **batch_stats},
      opt_state=opt_state,
      sums=metrics.add(state.sums, new),
    )
    if isinstance(after, AveragedState):
      average = averaging.follow(
        after.average,
        after.variables,
        after.step,
        decay=ema_decay,
        every=ema_every,
      )
      after = after.replace(average=average)
    return faults.settle(state, after, grads, new, skip_nonfinite)

  return jax.jit(
    train_step if steps_per_call == 1 else resident.repeat(train_step, mesh),
    donate_argnums=0,
    out_shardings=sharding.replicated(mesh),
    compiler_options=_compiler_options(mesh),
  )


def make_eval_step(
  model: ResNet, normalize: Normalize, *, mesh: Mesh
) -> EvalStep:
  """Returns the jitted function that adds a batch to the sums."""

  def eval_step(
    state: TrainState, total: metrics.Sums, batch: Batch
  ) -> metrics.Sums:
    images = normalize(batch["image"])
    logits = cast(jax.Array, model.apply(state.evaluated, images, train=False))
    each = losses.cross_entropy(logits, batch["label"])
    new = metrics.sums(each, logits, batch["label"], batch["mask"])
    return metrics.add(total, new)

  return jax.jit(
    eval_step,
    out_shardings=sharding.replicated(mesh),
    compiler_options=_compiler_options(mesh),
  )


def _compiler_options(mesh: Mesh) -> dict[str, str]:
  return operations.compiler_options(mesh.devices.flat[0].platform)
