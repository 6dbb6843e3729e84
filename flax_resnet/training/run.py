"""From a config to all the parts of a run.

Whatever can be wrong with a config is found here, before anything is compiled
or written.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import optax

from flax_resnet import sharding
from flax_resnet.data import Dataset, load
from flax_resnet.data.augment import make_augment, normalize
from flax_resnet.data.pipeline import Batch
from flax_resnet.models import create_model, ResNet
from flax_resnet.models.layers import at_least_float32
from flax_resnet.training import metrics, steps
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optim import make_optimizer
from flax_resnet.training.schema import build, check, InputError, wrong_input
from flax_resnet.training.state import (
  count_parameters,
  create_state,
  TrainState,
)


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
  """The parts of a run; `prepare` makes them from a config."""

  config: Mapping[str, Any]
  mesh: Mesh
  length: Length
  batch_size: int
  eval_batch_size: int
  keep_checkpoints: int
  seed: int
  model: ResNet
  dataset: Dataset
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

  def train_batches(self, first_step: int) -> Iterator[Batch]:
    """Returns this host's part of the batches after `first_step` updates."""
    return self.dataset.train.train_batches(
      batch_size=self.batch_size,
      seed=self.seed,
      first_step=first_step,
      **_this_host(),
    )

  def eval_batches(self) -> Iterator[Batch]:
    """Returns this host's part of every evaluated example, once."""
    return self.dataset.eval.eval_batches(
      batch_size=self.eval_batch_size, **_this_host()
    )

  def title(self) -> str:
    """Says what is trained on what."""
    return f"{self.config['model']['name']} on {self.config['data']['name']}"

  def about(self) -> dict[str, Any]:
    """Returns what a reader of a checkpoint needs besides the arrays."""
    return {
      "config": self.config,
      "class_names": list(self.dataset.class_names),
      "image_shape": list(self.dataset.image_shape),
    }

  def describe(self, state: TrainState) -> str:
    """Says in a few lines what is about to be trained."""
    height, width, channels = self.dataset.image_shape
    devices = list(self.mesh.devices.flat)
    group = self.model.norm_group_size
    over = f"groups of {group} of" if group else "all of"
    lines = [
      f"{self.title()}: {count_parameters(state):,} parameters, "
      f"{self.model.num_classes} classes, images {height}x{width}x{channels}, "
      f"{len(self.dataset.train):,} to train on and "
      f"{len(self.dataset.eval):,} to evaluate on",
      f"{self.length.num_steps:,} steps, {self.length.steps_per_epoch:.2f} an "
      f"epoch, on {len(devices)} x {devices[0].device_kind}; BatchNorm "
      f"normalises over {over} the {self.batch_size} examples of a step",
    ]
    if state.step:
      lines.append(f"continues after step {int(state.step)}")
    return "\n".join(lines)


def prepare(config: Mapping[str, Any], mesh: Mesh) -> Run:
  """Returns the run that a config describes.

  Raises:
    InputError: When the config cannot be run.
  """
  check("config", _prepare, config, {"mesh": mesh})
  return _prepare(mesh=mesh, **config)


def _prepare(
  *,
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
  """Builds a run; the arguments after `mesh` are the keys of a config."""
  config = {key: value for key, value in locals().items() if key != "mesh"}
  for key in (
    "batch_size",
    "eval_batch_size",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
  ):
    if config[key] < 1:
      raise InputError(f"config.{key} is {config[key]}: use 1 or more")
  if not 0 <= seed < 2**32:
    raise InputError(f"config.seed is {seed}: use 0 to 4294967295")
  with wrong_input("config"):
    sharding.check_batch_size(batch_size, mesh)
  net = build("config.model", create_model, model)
  if batch_size % (net.norm_group_size or batch_size):
    raise InputError(
      f"config.model.norm_group_size is {net.norm_group_size}, which does not "
      f"divide config.batch_size {batch_size}: use a divisor of it"
    )
  dataset = build("config.data", load, data, num_classes=net.num_classes)
  steps_per_epoch = len(dataset.train) / batch_size
  total = _num_steps(num_epochs, num_steps, steps_per_epoch)
  optimizer, rate = build(
    "config.optim", make_optimizer, optim, num_steps=total
  )
  image_dtype = at_least_float32(net.dtype)
  change = build("config.augment", make_augment, augment, dtype=image_dtype)
  colours = {key: augment[key] for key in ("mean", "std")}
  for key, value in colours.items():
    if len(value) != dataset.image_shape[-1]:
      raise InputError(
        f"config.augment.{key} has {len(value)} numbers and the images "
        f"{dataset.image_shape[-1]} channels: give one number a channel"
      )
  criterion = build("config.loss", make_loss, loss)
  return Run(
    config=config,
    mesh=mesh,
    length=Length(
      total, steps_per_epoch, log_every, eval_every, checkpoint_every
    ),
    batch_size=batch_size,
    eval_batch_size=sharding.round_up(eval_batch_size, mesh),
    keep_checkpoints=keep_checkpoints,
    seed=seed,
    model=net,
    dataset=dataset,
    optimizer=optimizer,
    learning_rate=rate,
    train_step=steps.make_train_step(
      net, optimizer, change, criterion, seed=seed, mesh=mesh
    ),
    eval_step=steps.make_eval_step(
      net, functools.partial(normalize, **colours, dtype=image_dtype), mesh=mesh
    ),
  )


def _num_steps(
  num_epochs: int | None, num_steps: int | None, steps_per_epoch: float
) -> int:
  if (num_epochs is None) == (num_steps is None):
    raise InputError(
      f"config.num_epochs is {num_epochs} and config.num_steps {num_steps}: "
      "give one of them, and None for the other"
    )
  key, total = "num_steps", num_steps or 0
  if num_epochs is not None:
    key, total = "num_epochs", round(num_epochs * steps_per_epoch)
  if total < 1:
    raise InputError(
      f"config.{key} makes a run of {total} steps: use at least 1 step"
    )
  return total


def _this_host() -> dict[str, int]:
  return {
    "shard_index": jax.process_index(),
    "shard_count": jax.process_count(),
  }
