"""One update and one evaluation step: pure functions of state and batch."""

from typing import cast

import jax
from jax.sharding import Mesh
import optax

from flax_resnet import sharding
from flax_resnet.data.augment import Augment, Normalize
from flax_resnet.models import operations, ResNet
from flax_resnet.training import averaging, losses, metrics, resident
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
  ema_decay: float = 0.0,
  ema_every: int = 1,
  freeze_trunk: bool = False,
) -> TrainStep:
  """Returns the jitted update; it takes the state's memory (donation).

  With more than one step per call, it takes what `resident.calls` yields. With
  a frozen trunk, nothing is computed backwards through it.
  """

  def train_step(state: TrainState, batch: Batch) -> TrainState:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    images, targets = augment(key, batch["image"], batch["label"])
    trained = trained_part(state.params, freeze_trunk)

    def loss_fn(trained):
      params = {**state.params, **trained}
      logits, updates = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        images,
        train=not freeze_trunk,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(key, 1)},
      )
      each = loss(logits, targets)
      return each.mean(), (each, logits, updates.get("batch_stats", {}))

    grads, (each, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
      trained
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = cast(dict, optax.apply_updates(trained, updates))
    new = metrics.sums(each, logits, batch["label"], batch["mask"])
    state = state.replace(
      step=state.step + 1,
      params={**state.params, **trained},
      batch_stats=batch_stats,
      opt_state=opt_state,
      sums=metrics.add(state.sums, new),
    )
    if isinstance(state, AveragedState):
      average = averaging.follow(
        state.average,
        state.variables,
        state.step,
        decay=ema_decay,
        every=ema_every,
      )
      state = state.replace(average=average)
    return state

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
