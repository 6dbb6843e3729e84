"""From a config to the parts of a run.

All that can be wrong with a config is found here, before anything is compiled
or written.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import inspect
import itertools
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from flax_resnet import schema, sharding
from flax_resnet.augment import Augment, make_augment, Normalize
from flax_resnet.data.dataset import Dataset, load, SECTION, Split
from flax_resnet.errors import each_reported_as, InputError, reported_as
from flax_resnet.models import create_model, ResNet
from flax_resnet.models.norms import at_least_float32
from flax_resnet.training import evaluation, metrics, multilabel, state
from flax_resnet.training.accumulation import accumulation_group_size
from flax_resnet.training.freezing import Freezing
from flax_resnet.training.losses import (
  balanced_weights,
  Loss,
  make_loss,
  make_weigh,
  Weigh,
)
from flax_resnet.training.optimizers import make_optimizer
from flax_resnet.training.recipe import Recipe
from flax_resnet.training.schedules import make_schedule
from flax_resnet.training.steps import TrainStep

# Keys with which a run may continue, as they cannot change its parameters and
# statistics at any step.
MAY_DIFFER = (
  *("log_every", "eval_every", "checkpoint_every", "keep_checkpoints"),
  *("eval_batch_size", "data.data_dir", "data.root", "data.classes_file"),
  *("data.num_threads", "data.num_workers", "data.allow_changed"),
  *("patience", "profile"),
)
# Arguments of the functions of sections that are not keys of a config.
_GIVEN = (
  *("num_steps", "rate", "block_names", "freezing", "multi_label"),
  "steps_per_epoch",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run; `set_up` makes them from a config.

  Attributes:
    recipe: the checked config.
    mesh: the devices.
    num_steps: length of the run in updates.
    model: the network.
    dataset: the data to train and evaluate on.
    freezing: what of the network is not trained, and until which step.
    optimizer: optimizer of the trained parameters.
    learning_rate: learning rate after so many updates.
    train_step: (state, input of `train_inputs`) -> state.
    eval_step: (variables, sums, batch) -> sums.
    normalize: normalization of uint8 images, all that evaluation does to them.
  """

  recipe: Recipe
  mesh: Mesh
  num_steps: int
  model: ResNet
  dataset: Dataset
  freezing: Freezing
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  train_step: jax.stages.Wrapped
  eval_step: jax.stages.Wrapped
  normalize: Normalize

  @property
  def steps_per_epoch(self) -> float:
    """Updates in which each training example is seen once."""
    return len(self.dataset.train) / self.recipe.batch_size

  @property
  def title(self) -> str:
    """The network and the data set: "cifar_resnet20 on cifar10"."""
    model = self.recipe.model
    changed = [
      f"{key}={model[key]}" for key in ("shortcut", "norm") if key in model
    ]
    network = " ".join([model["name"], *changed])
    return f"{network} on {self.recipe.data['name']}"

  @property
  def intervals(self) -> tuple[int, int, int]:
    """Steps between two rows, two evaluations and two checkpoints."""
    recipe = self.recipe
    return recipe.log_every, recipe.eval_every, recipe.checkpoint_every

  def due(self, step: int, every: int) -> bool:
    """Whether something that is done every so many steps is due at `step`."""
    return step % every == 0 or step == self.num_steps

  def about(self) -> dict[str, Any]:
    """Returns the part of a checkpoint that is not arrays."""
    devices = list(self.mesh.devices.flat)
    return {
      "devices": f"{len(devices)} x {devices[0].device_kind}",
      "jax": jax.__version__,
      "config": dataclasses.asdict(self.recipe),
      "class_names": list(self.dataset.class_names),
      "data": self.dataset.identity,
      "image_shape": list(self.dataset.image_shape),
      **({"multi_label": True} if self.dataset.multi_label else {}),
    }

  def dataset_facts(self) -> dict[str, Any]:
    """Returns what must be so on all hosts, by words for its reader."""
    return {
      "the number of examples to train on": len(self.dataset.train),
      "the number of examples to evaluate on": len(self.dataset.eval),
      "the list of classes": list(self.dataset.class_names),
    }

  def drawn_state(self) -> state.TrainState:
    """Returns the state that the seed draws, on the default device."""
    return state.create_state(
      self.model,
      self.optimizer,
      self.dataset.image_shape,
      self.recipe.seed,
      averaged=self.recipe.ema_decay > 0,
      freezing=self.freezing,
    )

  @property
  def score_key(self) -> str:
    """The key of the number by which evaluations are compared."""
    return "val/map" if self.dataset.multi_label else "val/top1"

  def evaluate(
    self, variables: Mapping[str, Any], batches: Iterator[Any]
  ) -> dict[str, evaluation.Means]:
    """Returns the means of each of several variables, see `evaluate_each`."""
    if self.dataset.multi_label:
      evaluate_each = multilabel.evaluate_each
    else:
      evaluate_each = evaluation.evaluate_each
    return evaluate_each(self.eval_step, variables, batches, self.mesh)

  def zero_sums(self) -> metrics.Sums:
    """Returns the sums of the metrics over no example, on every device."""
    return sharding.replicate(metrics.zeros(), self.mesh)

  def train_batches(self, first_step: int) -> Iterator[Any]:
    """Returns this host's part of the batches after `first_step` updates."""
    batches = self.dataset.train.train_batches(
      num_steps=self.num_steps, **self._order(first_step)
    )
    return each_reported_as("config.data", batches)

  def train_inputs(self, first_step: int) -> Iterator[tuple[Any, int]]:
    """Yields inputs of `train_step`, each with the number of its steps.

    With `steps_per_call`, the records lie on every device and an input holds
    the indices of many steps, but never goes past a step at which anything is
    due.
    """
    if self.recipe.steps_per_call == 1:
      batches = sharding.prefetch(self.train_batches(first_step), self.mesh)
      return ((batch, 1) for batch in batches)
    return each_reported_as("config.data", self._many_steps(first_step))

  def _many_steps(self, step: int) -> Iterator[tuple[Any, int]]:
    train, per_call = self.dataset.train, self.recipe.steps_per_call
    records = sharding.replicate(train.arrays(), self.mesh)
    stream = train.train_indices(**self._order(step))
    size = min(per_call, self.num_steps, *self.intervals)
    while step < self.num_steps:
      ends = [every - step % every for every in self.intervals]
      count = min(per_call, self.num_steps - step, *ends)
      rows = list(itertools.islice(stream, count))
      rows += rows[:1] * (size - count)  # One shape; these are not done.
      indices = {"indices": np.stack(rows, 1)}
      yield (
        {
          "records": records,
          "count": sharding.replicate(np.int32(count), self.mesh),
          **sharding.shard_batch(indices, self.mesh),
        },
        count,
      )
      step += count

  def eval_batches(self) -> Iterator[Any]:
    """Returns this host's part of every evaluated example, once."""
    return eval_batches(self.recipe, self.dataset.eval, self.mesh)

  def _order(self, first_step: int) -> dict[str, int]:
    return {
      "batch_size": self.recipe.batch_size,
      "seed": self.recipe.seed,
      "first_step": first_step,
      **_this_host(),
    }


def eval_batches(recipe: Recipe, split: Split, mesh: Mesh) -> Iterator[Any]:
  """Returns this host's part of every example of a split, once."""
  # No more at a time than there are: the rest would be memory for nothing.
  size = min(recipe.eval_batch_size, len(split))
  batches = split.eval_batches(
    batch_size=sharding.round_up(size, mesh), **_this_host()
  )
  return each_reported_as("config.data", batches)


def set_up(config: Mapping[str, Any], mesh: Mesh) -> Run:
  """Returns the run that a config describes.

  Args:
    config: a recipe, see `configs/`.
    mesh: the devices.

  Raises:
    InputError: if the config cannot be run.
  """
  recipe = schema.build("config", Recipe, config)
  with reported_as("config"):
    sharding.check_batch_size(recipe.batch_size, mesh)
  by_data = recipe.model.get("num_classes", 0) is None
  fields = {**recipe.model, **({"num_classes": 1} if by_data else {})}
  model = schema.build("config.model", create_model, fields, fields_of=ResNet)
  if (recipe.freeze_stages or 0) > (stages := len(model.stage_sizes)):
    raise InputError(
      f"config.freeze_stages is {recipe.freeze_stages} and the network has "
      f"{stages} stages: use 0 to {stages}, or freeze_trunk=True"
    )
  if recipe.batch_size % (model.norm_group_size or recipe.batch_size):
    raise InputError(
      f"config.model.norm_group_size is {model.norm_group_size}, which does "
      f"not divide config.batch_size {recipe.batch_size}: use a divisor of it"
    )
  with reported_as("config"):
    group_size = accumulation_group_size(
      model,
      recipe.batch_size,
      recipe.accumulate,
      mesh,
      frozen=recipe.freezing(0).keeps_all_batch_stats,
    )
  data = load(recipe.data, num_classes=None if by_data else model.num_classes)
  if by_data:
    fields["num_classes"] = len(data.class_names)
    model = model.clone(num_classes=fields["num_classes"])
    recipe = dataclasses.replace(recipe, model=fields)
  _check_records(recipe, data)
  with reported_as("config"):
    num_steps = recipe.total_steps(len(data.train))
  freezing = recipe.freezing(len(data.train))
  rate, optimizer = _optimizer(recipe, num_steps, model, freezing)
  augment_batch, normalize = set_up_augment(
    recipe,
    model,
    data.image_shape[-1],
    steps_per_epoch=len(data.train) / recipe.batch_size,
  )
  loss, weigh = _loss(recipe, data)
  train_step = TrainStep(
    model=model,
    optimizer=optimizer,
    augment=augment_batch,
    loss=loss,
    weigh=weigh,
    mesh=mesh,
    seed=recipe.seed,
    accumulate=recipe.accumulate,
    group_size=group_size,
    ema_decay=recipe.ema_decay,
    ema_every=recipe.ema_every,
    ema_warmup=recipe.ema_warmup,
    freezing=freezing,
    skip_nonfinite=recipe.skip_nonfinite,
  )
  make_eval_step = (
    multilabel.make_eval_step if data.multi_label else evaluation.make_eval_step
  )
  return Run(
    recipe=recipe,
    mesh=mesh,
    num_steps=num_steps,
    model=model,
    dataset=data,
    freezing=freezing,
    optimizer=optimizer,
    learning_rate=rate,
    train_step=train_step.jit(recipe.steps_per_call),
    eval_step=make_eval_step(model, normalize, mesh=mesh),
    normalize=normalize,
  )


def _loss(recipe: Recipe, data: Dataset) -> tuple[Loss, Weigh | None]:
  """Returns the loss of each example, and the weights of a mean of them."""
  section = dict(recipe.loss)
  if section.get("class_weights") == "balanced":
    with reported_as("config.loss"):
      section["class_weights"] = balanced_weights(
        data.class_counts(), data.class_names
      )
  loss = schema.build(
    "config.loss", make_loss, section, multi_label=data.multi_label
  )
  if (weights := section.get("class_weights")) is None:
    return loss, None
  if len(weights) != (classes := len(data.class_names)):
    raise InputError(
      f"config.loss.class_weights has {len(weights)} numbers and the data set "
      f"{classes} classes: give one number a class"
    )
  # PyTorch's binary loss divides by the number of examples, weighted or not.
  mean = section.get("name") == "binary_cross_entropy"
  return loss, None if mean else make_weigh(weights)


def set_up_augment(
  recipe: Recipe, model: ResNet, channels: int, steps_per_epoch: float = 1.0
) -> tuple[Augment, Normalize]:
  """Returns the augmentation and the normalization of a recipe.

  Args:
    recipe: the checked config.
    model: the network.
    channels: number of channels of the images.
    steps_per_epoch: steps in which each training example is seen once; default
      1, for who takes the normalization alone.

  Raises:
    InputError: for values that cannot be.
  """
  return schema.build(
    "config.augment",
    make_augment,
    recipe.augment,
    channels=channels,
    num_classes=model.num_classes,
    batch_size=recipe.batch_size,
    steps_per_epoch=steps_per_epoch,
    dtype=at_least_float32(model.dtype),
  )


def _optimizer(
  recipe: Recipe, num_steps: int, model: ResNet, freezing: Freezing
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  """Returns the learning rate by step of a run so long, and its optimizer."""
  of_schedule, of_optimizer = schema.arguments(
    "config.optim",
    recipe.optim,
    make_schedule,
    make_optimizer,
    given=_GIVEN,
  )
  with reported_as("config.optim"):
    rate = make_schedule(num_steps, **of_schedule)
    return rate, make_optimizer(
      rate, model.block_names, freezing, **of_optimizer
    )


def check_length(run: Run, config: Mapping[str, Any], step: int) -> list[str]:
  """Returns lines on a run that is longer than it was begun; mostly none.

  Args:
    run: the run as it is now.
    config: its config as it was.
    step: number of updates that are done.

  Raises:
    InputError: if it is shorter.
  """
  before = schema.build("config", Recipe, config)
  num_steps = before.total_steps(len(run.dataset.train))
  if run.num_steps < num_steps:
    key = "num_epochs" if run.recipe.num_steps is None else "num_steps"
    raise InputError(
      f"config.{key} makes a run of {run.num_steps:,} steps, and the workdir "
      f"holds one of {num_steps:,}: a run can be lengthened, not shortened; "
      "choose another --workdir"
    )
  if run.num_steps == num_steps:
    return []
  was, now = (
    float(np.asarray(rate(step)))
    for rate in (
      _optimizer(before, num_steps, run.model, run.freezing)[0],
      run.learning_rate,
    )
  )
  return [
    f"lengthened from {num_steps:,} to {run.num_steps:,} steps, of which the "
    f"schedule's shares are taken now: the learning rate after step {step:,} "
    f"is {now:.4g}, where it was {was:.4g}"
  ]


def _check_records(recipe: Recipe, data: Dataset) -> None:
  """Raises InputError unless batches can be made of the records."""
  if recipe.steps_per_call > 1 and data.train.random:
    raise InputError(
      f"config.steps_per_call is {recipe.steps_per_call}, for which images "
      "must be the same in every epoch: set "
      "config.data.random_resized_crop=False, config.data.policy=None and "
      "config.data.early_image_sizes=(), or config.steps_per_call=1"
    )
  if recipe.batch_size > len(data.train):
    raise InputError(
      f"config.batch_size is {recipe.batch_size} and there are "
      f"{len(data.train):,} examples to train on: use fewer at a time"
    )
  with reported_as("config.data"):
    data.train.check(recipe.batch_size)


def default_values(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values of the keys that a recipe may leave out.

  By their full names: "optim.momentum" is 0.9. Those of `model` are the fields
  of the named network.
  """
  functions = {
    "": [Recipe],
    "data.": SECTION,
    "augment.": [make_augment],
    "loss.": [make_loss],
    "optim.": [make_schedule, make_optimizer],
  }
  network = create_model(recipe["model"]["name"])
  return {
    f"model.{field}": getattr(network, field)
    for field in inspect.signature(ResNet).parameters
    if field not in ("parent", "name", "block", "dtype", "param_dtype")
  } | {
    "model.dtype": "float32",
    "model.param_dtype": "float32",
    **{
      f"{section}{name}": parameter.default
      for section, group in functions.items()
      for function in group
      for name, parameter in inspect.signature(function).parameters.items()
      if name not in _GIVEN
      and isinstance(parameter.default, (int, float, str, tuple, type(None)))
    },
  }


def _this_host() -> dict[str, int]:
  return {
    "shard_index": jax.process_index(),
    "shard_count": jax.process_count(),
  }
