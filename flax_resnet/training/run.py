"""From a config to all the parts of a run.

Whatever can be wrong with a config is found here, before anything is compiled
or written.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import optax

from flax_resnet import data, models, sharding
from flax_resnet.data import augment as augmentation
from flax_resnet.models.layers import at_least_float32
from flax_resnet.training import losses, metrics, optim, steps
from flax_resnet.training.schema import build, check, InputError
from flax_resnet.training.schema import wrong_input
from flax_resnet.training.state import count_parameters, create_state, TrainState


@dataclasses.dataclass(frozen=True)
class Length:
  """How long a run is, and how often something is done in it.

  Attributes:
    num_steps: Updates.
    steps_per_epoch: Updates in which each training example is seen once.
    log_every: Steps between two logged rows.
    eval_every: Steps between two evaluations.
    checkpoint_every: Steps between two checkpoints.
  """

  num_steps: int
  steps_per_epoch: float
  log_every: int
  eval_every: int
  checkpoint_every: int

  def is_due(self, step: int, every: int) -> bool:
    """Whether what is done at `every` so many steps is due after `step`."""
    return step % every == 0 or step == self.num_steps


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run; see `prepare` for what they are made of."""

  config: Mapping[str, Any]
  mesh: Mesh
  length: Length
  batch_size: int
  eval_batch_size: int
  keep_checkpoints: int
  seed: int
  model: models.ResNet
  dataset: data.Dataset
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  train_step: steps.TrainStep
  eval_step: steps.EvalStep

  def initial_state(self) -> TrainState:
    """Returns the state before the first step, on every device."""
    state = create_state(
      self.model, self.optimizer, self.dataset.image_shape, self.seed
    )
    return jax.device_put(state, sharding.replicated(self.mesh))

  def zero_sums(self) -> metrics.Sums:
    """Returns the sums of the metrics over no example, on every device."""
    return jax.device_put(metrics.zeros(), sharding.replicated(self.mesh))

  def title(self) -> str:
    """Says what is trained on what."""
    return f"{self.config['model']['name']} on {self.config['data']['name']}"

  def about(self) -> dict[str, Any]:
    """What a reader of a checkpoint needs besides the arrays."""
    return {
      "config": self.config,
      "class_names": list(self.dataset.class_names),
      "image_shape": list(self.dataset.image_shape),
    }

  def describe(self, state: TrainState) -> str:
    """Says in a few lines what is about to be trained."""
    height, width, channels = self.dataset.image_shape
    devices = self.mesh.devices.flat
    group = self.model.norm_group_size
    over = f"groups of {group} of" if group else "all of"
    done = int(state.step)
    return "\n".join(
      [
        f"{self.title()}: {count_parameters(state):,} parameters, "
        f"{len(self.dataset.train):,} images to train on, "
        f"{len(self.dataset.eval):,} to evaluate on, "
        f"{height}x{width}x{channels}, {self.model.num_classes} classes",
        f"{self.length.num_steps:,} steps, "
        f"{self.length.steps_per_epoch:.2f} an epoch, on {len(devices)} "
        f"{devices[0].device_kind} device{'s'[: len(devices) > 1]}; BatchNorm "
        f"normalises over {over} the {self.batch_size} examples of a step",
      ]
      + [f"continues after step {done}"] * (done > 0)
    )

  def train_batches(self, first_step: int):
    """Yields this host's part of the batches after `first_step` updates."""
    return self.dataset.train.train_batches(
      batch_size=self.batch_size,
      seed=self.seed,
      first_step=first_step,
      **self._shard(),
    )

  def eval_batches(self):
    """Yields this host's part of every evaluated example, once."""
    return self.dataset.eval.eval_batches(
      batch_size=self.eval_batch_size, **self._shard()
    )

  def _shard(self) -> dict[str, int]:
    return {
      "shard_index": jax.process_index(),
      "shard_count": jax.process_count(),
    }


def prepare(config: Mapping[str, Any], mesh: Mesh) -> Run:
  """Returns the run that a config describes.

  Raises:
    InputError: When the config cannot be run.
  """
  check("config", _assemble, config, {"mesh": mesh, "config": config})
  return _assemble(mesh=mesh, config=config, **config)


def _assemble(
  *,
  config: Mapping[str, Any],
  mesh: Mesh,
  seed: int,
  batch_size: int,
  eval_batch_size: int,
  num_epochs: int | None,
  num_steps: int | None,
  log_every: int,
  eval_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  model: Mapping[str, Any],
  data: Mapping[str, Any],
  augment: Mapping[str, Any],
  loss: Mapping[str, Any],
  optim: Mapping[str, Any],
) -> Run:
  """Builds a run; its arguments are the keys of a config."""
  positive = {
    "batch_size": batch_size,
    "eval_batch_size": eval_batch_size,
    "log_every": log_every,
    "eval_every": eval_every,
    "checkpoint_every": checkpoint_every,
    "keep_checkpoints": keep_checkpoints,
  }
  for key, value in positive.items():
    if value < 1:
      raise InputError(f"config.{key} is {value}: use 1 or more")
  with wrong_input("config"):
    sharding.check_batch_size(batch_size, mesh)
  net = build("config.model", models.create_model, model)
  if batch_size % (net.norm_group_size or batch_size):
    raise InputError(
      f"config.model.norm_group_size is {net.norm_group_size}, which does not "
      f"divide config.batch_size {batch_size}: use a divisor of it"
    )
  dataset = build(
    "config.data", _data_load, data, num_classes=net.num_classes
  )
  per_epoch = len(dataset.train) / batch_size
  total = _num_steps(num_epochs, num_steps, per_epoch)
  optimizer, rate = build(
    "config.optim", _make_optimizer, optim, num_steps=total
  )
  dtype = at_least_float32(net.dtype)
  with_loss = build("config.loss", losses.make_loss, loss)
  change = build(
    "config.augment",
    augmentation.make_augment,
    augment,
    dtype=dtype,
  )
  for key in ("mean", "std"):
    if len(augment[key]) != dataset.image_shape[-1]:
      raise InputError(
        f"config.augment.{key} has {len(augment[key])} numbers and the images "
        f"{dataset.image_shape[-1]} channels: give one number a channel"
      )
  normalize = functools.partial(
    augmentation.normalize,
    mean=augment["mean"],
    std=augment["std"],
    dtype=dtype,
  )
  return Run(
    config=config,
    mesh=mesh,
    length=Length(total, per_epoch, log_every, eval_every, checkpoint_every),
    batch_size=batch_size,
    eval_batch_size=sharding.round_up(eval_batch_size, mesh),
    keep_checkpoints=keep_checkpoints,
    seed=seed,
    model=net,
    dataset=dataset,
    optimizer=optimizer,
    learning_rate=rate,
    train_step=steps.make_train_step(
      net, optimizer, change, with_loss, seed=seed, mesh=mesh
    ),
    eval_step=steps.make_eval_step(net, normalize, mesh=mesh),
  )


_data_load = data.load
_make_optimizer = optim.make_optimizer


def _num_steps(
  num_epochs: int | None, num_steps: int | None, steps_per_epoch: float
) -> int:
  if (num_epochs is None) == (num_steps is None):
    raise InputError(
      f"config.num_epochs is {num_epochs} and config.num_steps {num_steps}: "
      "give one of them, and None for the other"
    )
  total = num_steps
  if num_epochs is not None:
    total = round(num_epochs * steps_per_epoch)
  if total is None or total < 1:
    raise InputError(f"the run has {total} steps: use 1 or more")
  return total
