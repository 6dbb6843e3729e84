"""What a run says of itself before its first step."""

from collections.abc import Iterator, Sequence

from flax_resnet.training.run import Run
from flax_resnet.training.state import (
  count,
  count_parameters,
  trained_part,
  TrainState,
)


def describe(run: Run, state: TrainState, origin: Sequence[str] = ()) -> str:
  """Says in a few lines what is about to be trained, and from where.

  Args:
    run: What was asked for.
    state: From which the run goes on.
    origin: What `warm_start` says.
  """
  return "\n".join(
    [*_subject(run, state), *origin, *_options(run, state), *_place(state)]
  )


def _subject(run: Run, state: TrainState) -> Iterator[str]:
  """Says which network, data and devices."""
  height, width, channels = run.dataset.image_shape
  devices = list(run.mesh.devices.flat)
  yield (
    f"{run.title()}: {count_parameters(state):,} parameters, "
    f"{run.model.num_classes} classes, images {height}x{width}x{channels}, "
    f"{len(run.dataset.train):,} to train on and "
    f"{len(run.dataset.eval):,} to evaluate on"
  )
  yield (
    f"{run.num_steps:,} steps, {run.steps_per_epoch:.2f} an epoch, on "
    f"{len(devices)} x {devices[0].device_kind}; {_norm(run)}"
  )


def _norm(run: Run) -> str:
  """Says over which examples BatchNorm normalises."""
  if run.model.norm == "none":
    return "no BatchNorm"
  if run.recipe.freeze_trunk:
    return "BatchNorm keeps its running statistics"
  group = run.model.norm_group_size
  over = f"groups of {group} of" if group else "all of"
  return (
    f"BatchNorm normalises over {over} the {run.recipe.batch_size} examples "
    "of a step"
  )


def _options(run: Run, state: TrainState) -> Iterator[str]:
  """Says what is not done in every run."""
  recipe = run.recipe
  if recipe.freeze_trunk:
    head = count(trained_part(state.params, freeze_trunk=True))
    yield (
      f"the head alone is trained: {head:,} of {count_parameters(state):,} "
      "parameters"
    )
  if (parts := recipe.accumulate) > 1:
    yield (
      f"a step adds up the gradients of {parts} parts of "
      f"{recipe.batch_size // parts} examples"
    )
  if early := run.dataset.train.early:
    sizes = [
      f"of {reader.image_shape[0]} pixels until step "
      f"{round(until * run.num_steps):,}"
      for until, reader in early
    ]
    yield f"training images are {', '.join(sizes)}"
  if recipe.ema_decay:
    yield (
      "evaluation takes the moving average of parameters and running "
      f"statistics: it keeps {recipe.ema_decay:g} of itself every "
      + _steps(recipe.ema_every)
    )


def _place(state: TrainState) -> Iterator[str]:
  """Says where a run that was stopped goes on."""
  if state.step:
    yield f"continues after step {int(state.step)}"


def _steps(number: int) -> str:
  return "step" if number == 1 else f"{number:,} steps"
