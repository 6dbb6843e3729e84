"""The training loop."""

from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from flax_resnet import sharding
from flax_resnet.data.datasets import Split
from flax_resnet.training import (
  checkpoint,
  curves,
  digests,
  faults,
  hosts,
  lock,
  metrics,
)
from flax_resnet.training import workdir as workdirs
from flax_resnet.training.announcement import describe
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.evaluation import evaluate
from flax_resnet.training.interrupt import Stopped, StopSignals, until
from flax_resnet.training.logbook import Logbook, Row
from flax_resnet.training.pace import Pace
from flax_resnet.training.run import prepare, Run
from flax_resnet.training.state import TrainState
from flax_resnet.training.warm_start import warm_start


def train(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | pathlib.Path,
  mesh: Mesh | None = None,
) -> dict[str, Any]:
  """Trains to the end of the recipe, from where the workdir stands.

  Args:
    config: A recipe, see `configs/`.
    workdir: Of the run; a run that it holds is continued.
    mesh: The devices; None for all there are.

  Returns:
    What `summary.json` says.

  Raises:
    InputError: When config and workdir cannot be used; nothing is written.
    RunError: When a step is not finite, see `faults`, or the workdir cannot be
      written any more.
    Stopped: At SIGINT or SIGTERM, after a checkpoint.
  """
  workdir = pathlib.Path(workdir)
  config = config.to_dict() if isinstance(config, ConfigDict) else config
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdirs.writing(workdir))
    run = prepare(config, mesh or sharding.make_mesh())
    workdirs.check(workdir, config)
    folder = workdir / "checkpoints"
    state, origin = run.initial_state(), ()
    if not checkpoint.exists(folder):
      # A run that continues needs its weight file no more.
      state, origin = warm_start(run, state)
    stack.enter_context(lock.held(workdir))
    damaged = hosts.first(lambda: digests.set_damaged_aside(folder))
    checkpoints = Checkpoints(folder, run.recipe.keep_checkpoints)
    stack.callback(checkpoints.close)
    if (step := checkpoints.latest_step()) is not None:
      state = checkpoints.restore(step, state)
    if _writes():
      workdirs.write_json(workdir / "config.json", config)
    log = Logbook(workdir, int(state.step), run.num_steps, _writes())
    stack.callback(log.close)
    log.say(describe(run, state, (*origin, *damaged.splitlines())))

    with StopSignals(jax.process_count()) as signals:
      state = _fit(run, state, checkpoints, log, signals)
      checkpoints.wait()
    signum = signals.received or 0
    return _conclude(run, int(state.step), workdir, log, signum)


def _fit(
  run: Run,
  state: TrainState,
  checkpoints: Checkpoints,
  log: Logbook,
  signals: StopSignals,
) -> TrainState:
  """Takes the steps that are left; logs, evaluates and saves on the way."""
  recipe, step = run.recipe, int(state.step)
  pace, train_step, shapes = Pace(step), run.train_step, None
  if step and not _is_told(run, log, step):
    # A signal had come before its evaluation, or its row was damaged.
    state, _ = _look(run, state, pace, log, signals)
  if step == run.num_steps or signals.stopping:
    return state
  calls = run.train_calls(step)
  batch, count = next(calls)

  while step < run.num_steps and not signals.stopping:
    if shapes != (here := jax.tree.map(jnp.shape, batch)):
      with pace.pause(state):
        train_step = run.train_step.lower(state, batch).compile()
      shapes = here
    state = train_step(state, batch)
    step += count
    log.advance(count)
    batch, count = next(calls, (None, 0))
    if not signals.to_stop() and not run.is_looked_at(step):
      continue

    faults.check(state.faults, recipe.skip_nonfinite, run.learning_rate)
    state, row = _look(run, state, pace, log, signals)
    if signals.stopping or run.is_due(step, recipe.checkpoint_every):
      with pace.pause(state):
        checkpoints.save(state, row, run.about())
  return state


def _look(
  run: Run, state: TrainState, pace: Pace, log: Logbook, signals: StopSignals
) -> tuple[TrainState, Row]:
  """Evaluates and logs what is due; returns the row.

  Nothing is logged when a signal comes before the evaluation is complete: the
  run does it when it continues.
  """
  step, row = int(state.step), {}
  if run.is_due(step, run.recipe.eval_every):
    with pace.pause(state):
      batches = until(signals.to_stop, run.eval_batches())
      row = evaluate(run.eval_step, state, batches, run.mesh)
      row |= _skipped("val", run.dataset.eval)
    if signals.stopping:
      return state, {}
  if run.is_due(step, run.recipe.log_every):
    row = _training_metrics(run, state, step, pace) | row
    state = state.replace(sums=run.zero_sums())
  if row:
    log.write(step, {"epoch": step / run.steps_per_epoch, **row})
  return state, row


def _is_told(run: Run, log: Logbook, step: int) -> bool:
  """Whether the log has what was due after `step`."""
  return log.knows(step) and (step < run.num_steps or bool(log.evaluated()))


def _training_metrics(
  run: Run, state: TrainState, step: int, pace: Pace
) -> dict[str, float]:
  """Fetches the sums since the last call: waits for the device."""
  means = metrics.means(state.sums)
  known = ("loss", "top1") if means["count"] else ()  # Or all were skipped.
  skipped = int(state.faults.count)
  return {
    **{f"train/{key}": means[key] for key in known},
    "learning_rate": float(np.asarray(run.learning_rate(step - 1 - skipped))),
    "images_per_second": pace.lap(step) * run.recipe.batch_size,
    **({"train/skipped_steps": skipped} if run.recipe.skip_nonfinite else {}),
    **_skipped("train", run.dataset.train),
  }


def _skipped(name: str, split: Split) -> dict[str, int]:
  """Returns how many broken images this host skipped since it was asked."""
  return {f"{name}/skipped": split.skipped.take()} if split.skips else {}


def _conclude(
  run: Run, step: int, workdir: pathlib.Path, log: Logbook, signum: int
) -> dict[str, Any]:
  """Draws the curves, writes the summary and says how the run ended."""
  if log.rows and _writes():
    curves.draw(log.rows, run.title(), workdir / "curves.png")
  if not log.knows(run.num_steps):
    raise Stopped(
      f"stopped after step {step}, which is saved: the same command continues",
      signum,
    )
  last = log.evaluated()[-1]
  best = max(log.evaluated(), key=lambda row: row["val/top1"])
  summary = {
    "val/top1": last["val/top1"],
    "best/val/top1": best["val/top1"],
    "best/step": best["step"],
    "step": step,
    "seconds": round(log.seconds(), 1),
    "finished": True,
  }
  if _writes():
    workdirs.write_json(workdir / "summary.json", summary)
  log.say(
    f"finished after {step} steps and {log.seconds():.0f} s: top1 "
    f"{last['val/top1']:.2%} on {last['val/count']:,} images (best "
    f"{best['val/top1']:.2%} after step {best['step']}); curves in "
    f"{workdir / 'curves.png'}"
  )
  return summary


def _writes() -> bool:
  """Whether this host writes the files of the run."""
  return jax.process_index() == 0
