"""From a config to all the parts of a run.

Whatever can be wrong with a config is found here, before anything is compiled
or written.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import optax

from flax_resnet import sharding
from flax_resnet.data import Dataset, load
from flax_resnet.data.augment import make_augment, Normalize
from flax_resnet.data.pipeline import Batch
from flax_resnet.models import create_model, ResNet
from flax_resnet.models.layers import at_least_float32
from flax_resnet.training import accumulation, metrics, resident, steps
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optim import make_optimizer
from flax_resnet.training.recipe import Recipe
from flax_resnet.training.schema import build, InputError, told, wrong_input
from flax_resnet.training.state import create_state, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run; `prepare` makes them from a config.

  Attributes:
    recipe: What was asked for.
    mesh: The devices.
    num_steps: Updates.
    model: The network.
    dataset: What to train and evaluate on.
    optimizer: Of the parameters.
    learning_rate: As a function of the completed steps.
    train_step: (state, batch) -> state.
    eval_step: (state, sums, batch) -> sums.
    normalize: What evaluation does to uint8 images before the network.
  """

  recipe: Recipe
  mesh: Mesh
  num_steps: int
  model: ResNet
  dataset: Dataset
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  train_step: steps.TrainStep
  eval_step: steps.EvalStep
  normalize: Normalize

  def is_due(self, step: int, every: int) -> bool:
    """Whether what is done at `every` so many steps is due after `step`."""
    return step % every == 0 or step == self.num_steps

  def is_looked_at(self, step: int) -> bool:
    """Whether anything is due after `step`, for which the host waits."""
    return any(self.is_due(step, every) for every in self._dues())

  def train_calls(self, first_step: int) -> Iterator[tuple[Any, int]]:
    """Yields what `train_step` takes, and how many steps it does with it.

    No call goes past a step after which something is due.
    """
    size = self.recipe.steps_per_call
    if size == 1:
      batches = sharding.prefetch(self.train_batches(first_step), self.mesh)
      return ((batch, 1) for batch in batches)
    calls = resident.calls(
      self.dataset.train,
      self.mesh,
      self._counts(first_step),
      size=self._longest(),
      **self._order(first_step),
    )
    return told("config.data", calls)

  def _longest(self) -> int:
    """Returns the most steps that a call may do."""
    return min(self.recipe.steps_per_call, self.num_steps, *self._dues())

  def _counts(self, step: int) -> Iterator[int]:
    """Yields the lengths of the calls from `step` to the end."""
    while step < self.num_steps:
      ends = [every - step % every for every in self._dues()]
      count = min(self.recipe.steps_per_call, self.num_steps - step, *ends)
      yield count
      step += count

  def _dues(self) -> tuple[int, ...]:
    """Returns after how many steps, again and again, something is done."""
    recipe = self.recipe
    return recipe.log_every, recipe.eval_every, recipe.checkpoint_every

  @property
  def steps_per_epoch(self) -> float:
    """Updates in which each training example is seen once."""
    return len(self.dataset.train) / self.recipe.batch_size

  def initial_state(self) -> TrainState:
    """Returns the state that the seed draws, on every device.

    That before the first step, unless the run starts from weights; see
    `warm_start`.
    """
    state = create_state(
      self.model,
      self.optimizer,
      self.dataset.image_shape,
      self.recipe.seed,
      averaged=self.recipe.ema_decay > 0,
      freeze_trunk=self.recipe.freeze_trunk,
    )
    return sharding.replicate(state, self.mesh)

  def zero_sums(self) -> metrics.Sums:
    """Returns the sums of the metrics over no example, on every device."""
    return sharding.replicate(metrics.zeros(), self.mesh)

  def train_batches(self, first_step: int) -> Iterator[Batch]:
    """Returns this host's part of the batches after `first_step` updates."""
    batches = self.dataset.train.train_batches(
      num_steps=self.num_steps, **self._order(first_step)
    )
    return told("config.data", batches)

  def _order(self, first_step: int) -> dict[str, int]:
    return {
      "batch_size": self.recipe.batch_size,
      "seed": self.recipe.seed,
      "first_step": first_step,
      **_this_host(),
    }

  def eval_batches(self) -> Iterator[Batch]:
    """Returns this host's part of every evaluated example, once."""
    # No more at a time than there are: the rest would be memory for nothing.
    size = min(self.recipe.eval_batch_size, len(self.dataset.eval))
    batches = self.dataset.eval.eval_batches(
      batch_size=sharding.round_up(size, self.mesh),
      **_this_host(),
    )
    return told("config.data", batches)

  def title(self) -> str:
    """Says what is trained on what."""
    model = self.recipe.model
    changed = [
      f"{key}={model[key]}" for key in ("shortcut", "norm") if key in model
    ]
    network = " ".join([model["name"], *changed])
    return f"{network} on {self.recipe.data['name']}"

  def about(self) -> dict[str, Any]:
    """Returns what a reader of a checkpoint needs besides the arrays."""
    return {
      "config": dataclasses.asdict(self.recipe),
      "class_names": list(self.dataset.class_names),
      "image_shape": list(self.dataset.image_shape),
    }


def prepare(config: Mapping[str, Any], mesh: Mesh) -> Run:
  """Returns the run that a config describes.

  Raises:
    InputError: When the config cannot be run.
  """
  recipe = build("config", Recipe, config)
  with wrong_input("config"):
    sharding.check_batch_size(recipe.batch_size, mesh)
  model = build("config.model", create_model, recipe.model)
  if recipe.batch_size % (model.norm_group_size or recipe.batch_size):
    raise InputError(
      f"config.model.norm_group_size is {model.norm_group_size}, which does "
      f"not divide config.batch_size {recipe.batch_size}: use a divisor of it"
    )
  with wrong_input("config"):
    group_size = accumulation.kept_together(
      model,
      recipe.batch_size,
      recipe.accumulate,
      mesh,
      frozen=recipe.freeze_trunk,
    )
  dataset = build(
    "config.data", load, recipe.data, num_classes=model.num_classes
  )
  if recipe.steps_per_call > 1 and dataset.train.random:
    raise InputError(
      f"config.steps_per_call is {recipe.steps_per_call}, for which images "
      "must be the same in every epoch: set "
      "config.data.random_resized_crop=False, config.data.policy=None and "
      "config.data.early_image_sizes=(), or config.steps_per_call=1"
    )
  if recipe.batch_size > len(dataset.train):
    raise InputError(
      f"config.batch_size is {recipe.batch_size} and there are "
      f"{len(dataset.train):,} examples to train on: use fewer at a time"
    )
  with wrong_input("config.data"):
    dataset.train.check(recipe.batch_size)
  with wrong_input("config"):
    num_steps = recipe.total_steps(len(dataset.train))
  optimizer, learning_rate = build(
    "config.optim",
    make_optimizer,
    recipe.optim,
    num_steps=num_steps,
    batch_size=recipe.batch_size,
  )
  augment, prepared = build(
    "config.augment",
    make_augment,
    recipe.augment,
    channels=dataset.image_shape[-1],
    num_classes=model.num_classes,
    batch_size=recipe.batch_size,
    dtype=at_least_float32(model.dtype),
  )
  loss = build("config.loss", make_loss, recipe.loss)
  return Run(
    recipe=recipe,
    mesh=mesh,
    num_steps=num_steps,
    model=model,
    dataset=dataset,
    optimizer=optimizer,
    learning_rate=learning_rate,
    train_step=steps.make_train_step(
      model,
      optimizer,
      augment,
      loss,
      seed=recipe.seed,
      mesh=mesh,
      steps_per_call=recipe.steps_per_call,
      accumulate=recipe.accumulate,
      group_size=group_size,
      ema_decay=recipe.ema_decay,
      ema_every=recipe.ema_every,
      freeze_trunk=recipe.freeze_trunk,
      skip_nonfinite=recipe.skip_nonfinite,
    ),
    eval_step=steps.make_eval_step(model, prepared, mesh=mesh),
    normalize=prepared,
  )


def _this_host() -> dict[str, int]:
  return {
    "shard_index": jax.process_index(),
    "shard_count": jax.process_count(),
  }
