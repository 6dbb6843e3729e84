"""The training loop.

After every step at which anything is due, in this order:

1. What is not finite ends the run: nothing of it is ever written.
2. Evaluation, of the state after `step` updates.
3. The row in metrics.jsonl. It comes before the checkpoint: a row without a
   checkpoint is replayed when the run continues, a checkpoint without its row
   would lose it.
4. The checkpoint, last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import pathlib
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from flax_resnet import hosts, plots, sharding, storage
from flax_resnet.data.dataset import Split
from flax_resnet.data.identity import check_unchanged
from flax_resnet.errors import InputError
from flax_resnet.models.variables import Variables
from flax_resnet.training import metrics
from flax_resnet.training.checkpoint import Checkpoints, quarantine_damaged
from flax_resnet.training.evaluation import beside, check_counted
from flax_resnet.training.init_from import start_from_weights
from flax_resnet.training.log import describe, Log, resident_memory, Row
from flax_resnet.training.setup import (
  check_length,
  default_values,
  Run,
  set_up,
)
from flax_resnet.training.state import TrainState
from flax_resnet.training.steps import check_finite, CompiledByShape
from flax_resnet.training.stop import (
  out_of_patience,
  Stopped,
  StopSignals,
  until_stopped,
)
from flax_resnet.training.workdir import (
  check_hosts,
  check_workdir,
  opened,
  write_errors_reported,
)


class Trained(NamedTuple):
  """A finished run.

  Attributes:
    summary: contents of `summary.json`.
    variables: {"params": ..., "batch_stats": ...} as they were evaluated last:
      the moving average where the run has one.
  """

  summary: dict[str, Any]
  variables: Variables


def train(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | pathlib.Path,
  mesh: Mesh | None = None,
  on_row: Callable[[Row], object] | None = None,
) -> Trained:
  """Trains to the end of the recipe, from where the run in the workdir is.

  Args:
    config: a recipe, see `load_recipe`.
    workdir: folder of the run, or its URL, gs:// or s3://; a run that it holds
      is continued.
    mesh: the devices; None for all there are.
    on_row: function that is called on the first host with every row of
      metrics.jsonl once it is written, {"step": ..., "train/loss": ...}; None
      (default) for none. A run that continues comes to the rows after its last
      checkpoint again.

  Returns:
    The summary and the trained variables.

  Raises:
    InputError: if config and workdir cannot be used; nothing is written.
    RunError: if a step is not finite, or the workdir cannot be written any
      more.
    Stopped: at SIGINT or SIGTERM, after a checkpoint.
  """
  given: Any = config.to_dict() if isinstance(config, ConfigDict) else config
  if not isinstance(given, Mapping):
    raise InputError(
      f"config is {given!r:.100}: give that of load_recipe, or a dict like it"
    )
  config = {key: storage.plain(value) for key, value in given.items()}
  writes = jax.process_index() == 0  # One host writes the files of the run.
  with contextlib.ExitStack() as stack:
    stack.enter_context(write_errors_reported(workdir))
    run = set_up(config, mesh or sharding.make_mesh())
    if config["model"].get("num_classes", 0) is None:  # Left to the data.
      classes = {"num_classes": run.model.num_classes}
      config = {**config, "model": {**config["model"], **classes}}
    place = stack.enter_context(opened(workdir))
    workdir = place.path  # In which the run works, wherever it is kept.
    defaults = default_values(config)
    changed = check_workdir(workdir, config, defaults)
    check_hosts(config, defaults, **run.dataset_facts())
    directory = workdir / "checkpoints"

    # A run starts from
    # 1. the parameters that its seed draws;
    state, origin = run.drawn_state(), []
    # 2. or the weights of `init_from`, unless it continues: then it needs that
    #    file no more, and nothing has been written when the file is wrong;
    if not storage.checkpoint_steps(directory):
      state, origin = start_from_weights(run, state)
    state = sharding.replicate(state, run.mesh)
    # 3. or its own newest checkpoint, once damaged newer ones are set aside;
    stack.enter_context(place.locked())
    damaged = place.on_each_copy(lambda: quarantine_damaged(directory))
    checkpoints = Checkpoints(
      directory, run.recipe.keep_checkpoints, place.flush, place.shared
    )
    stack.callback(checkpoints.close)
    if (step := checkpoints.latest_step()) is not None:
      changed += check_length(run, storage.read_config(workdir), step)
      changed += check_unchanged(
        checkpoints.about(step).get("data", {}),
        run.about()["data"],
        allow_changed=run.recipe.data.get("allow_changed", False),
      )
      state = checkpoints.restore(step, state)
    # 4. and the rows of metrics.jsonl after that step are dropped.
    if writes:
      storage.write_json(workdir / "config.json", config)
      if state.step < run.num_steps:  # It may have been shorter, and finished.
        (workdir / "summary.json").unlink(missing_ok=True)
    log = Log(workdir, int(state.step), run.num_steps, writes, on_row)
    stack.callback(log.close)
    lines = [*origin, *damaged.splitlines(), *changed]
    log.print(describe(run, state, lines))

    steps = run.recipe.profile if writes else ()
    trace = stack.enter_context(Trace(workdir / "tensorboard", steps))
    stop_signals = StopSignals(jax.process_count())
    with stop_signals as signals, hosts.failures_shared():
      state = _take_steps(run, state, checkpoints, log, signals, trace)
      checkpoints.wait()
    if log.rows and writes:
      path = workdir / "curves.png"
      plots.training_curves(log.rows, run.title, path)
    if not (log.has_row(run.num_steps) or _is_out_of_patience(run, log)):
      raise Stopped(
        f"stopped after step {int(state.step)}, which is saved: the same "
        "command continues",
        signals.received or 0,
      )
    summary = _summary(run, log, int(state.step))
    if writes:
      storage.write_json(workdir / "summary.json", summary)
    _print_summary(run, log, summary, workdir)
    return Trained(summary, state.eval_variables)


def _take_steps(
  run: Run,
  state: TrainState,
  checkpoints: Checkpoints,
  log: Log,
  signals: StopSignals,
  trace: "Trace",
) -> TrainState:
  """Takes the steps that are left; logs, evaluates and saves on the way."""
  recipe, step = run.recipe, int(state.step)
  timer = StepTimer(step)
  train_step = CompiledByShape(run.train_step, timer.paused)
  if step and not _is_logged(run, log, step):
    # A signal had come before its evaluation, or its row was damaged.
    state, _ = _evaluate_and_log(run, state, timer, log, signals)
  early = _is_out_of_patience(run, log)
  if step == run.num_steps or signals.stopping or early:
    return state
  inputs = run.train_inputs(step)
  batch, count = next(inputs)

  while step < run.num_steps and not (signals.stopping or early):
    trace.before(step, count, state)
    state = train_step(state, batch)
    step += count
    log.advance(count)
    batch, count = next(inputs, (None, 0))  # While the device computes.
    due = any(run.due(step, every) for every in run.intervals)
    if not signals.should_stop() and not due:
      continue

    check_finite(state.nonfinite, recipe.skip_nonfinite, run.learning_rate)
    state, row = _evaluate_and_log(run, state, timer, log, signals)
    early = _is_out_of_patience(run, log)
    if early or signals.stopping or run.due(step, recipe.checkpoint_every):
      with timer.paused(state):
        checkpoints.save(state, row, run.about())
  return state


def _is_logged(run: Run, log: Log, step: int) -> bool:
  """Whether the log has all that was due at `step`."""
  return log.has_row(step) and (step < run.num_steps or bool(log.evaluations()))


def _is_out_of_patience(run: Run, log: Log) -> bool:
  """Whether the run ends here, as its results have stopped to get better."""
  scores = [storage.score(row) for row in log.evaluations()]
  return out_of_patience(scores, run.recipe.patience)


def _evaluate_and_log(
  run: Run,
  state: TrainState,
  timer: "StepTimer",
  log: Log,
  signals: StopSignals,
) -> tuple[TrainState, Row]:
  """Evaluates and logs what is due; returns the row.

  Nothing is logged if a signal comes before the evaluation is complete: the run
  does it when it continues.
  """
  step, row = int(state.step), {}
  if run.due(step, run.recipe.eval_every):
    with timer.paused(state):
      batches = until_stopped(signals.should_stop, run.eval_batches())
      row = evaluate(run, state, batches)
      row |= _skipped_images("val", run.dataset.eval)
    if signals.stopping:
      return state, {}
    check_counted(row)
  if run.due(step, run.recipe.log_every):
    row = _training_metrics(run, state, step, timer) | row
    state = state.replace(sums=run.zero_sums())
  if row:
    log.write(step, {"epoch": step / run.steps_per_epoch, **row})
  return state, row


def evaluate(
  run: Run, state: TrainState, batches: Iterator[Any]
) -> dict[str, float]:
  """Returns the means; those of the raw network beside those of an average."""
  if not state.average:
    return run.evaluate({"": state.variables}, batches)[""]
  each = {"average": state.average, "raw": state.variables}
  return beside(**run.evaluate(each, batches))


def _training_metrics(
  run: Run, state: TrainState, step: int, timer: "StepTimer"
) -> dict[str, float]:
  """Fetches the sums since the last row: waits for the device."""
  means = metrics.means(state.sums)
  keys = ("loss",) if run.dataset.multi_label else ("loss", "top1")
  keys = keys if means["count"] else ()  # Or all were skipped.
  skipped = int(state.nonfinite.count)
  return {
    **{f"train/{key}": means[key] for key in keys},
    "learning_rate": float(np.asarray(run.learning_rate(step - 1 - skipped))),
    "images_per_second": timer.steps_per_second(step) * run.recipe.batch_size,
    "memory": resident_memory(),
    **({"train/skipped_steps": skipped} if run.recipe.skip_nonfinite else {}),
    **_skipped_images("train", run.dataset.train),
  }


def _skipped_images(name: str, split: Split) -> dict[str, int]:
  """Returns how many broken images this host skipped since the last call."""
  return {f"{name}/skipped": split.skipped.take()} if split.skips else {}


def _summary(run: Run, log: Log, step: int) -> dict[str, Any]:
  last, key = log.evaluations()[-1], run.score_key
  best = max(log.evaluations(), key=lambda row: row[key])
  early = step < run.num_steps
  return {
    key: last[key],
    f"best/{key}": best[key],
    "best/step": best["step"],
    "step": step,
    "seconds": round(log.seconds(), 1),
    "finished": True,
    **({"stopped_early": early} if run.recipe.patience is not None else {}),
  }


def _print_summary(
  run: Run, log: Log, summary: Mapping[str, Any], workdir: pathlib.Path
) -> None:
  count, key = log.evaluations()[-1]["val/count"], run.score_key
  if summary.get("stopped_early"):
    log.print(
      f"no better result in {run.recipe.patience} evaluations: ends after step "
      f"{summary['step']} of {run.num_steps}"
    )
  log.print(
    f"finished after {summary['step']} steps and {log.seconds():.0f} s: "
    f"{key.removeprefix('val/')} {summary[key]:.2%} on {count:,} images (best "
    f"{summary[f'best/{key}']:.2%} after step {summary['best/step']}); "
    f"curves in {workdir / 'curves.png'}"
  )


class Trace:
  """A trace of some steps, in a `with` block.

  It lies in plugins/profile of the folder, where TensorBoard's profiler finds
  it; perfetto_trace.json.gz is for https://ui.perfetto.dev.

  Args:
    folder: path of TensorBoard's files.
    steps: numbers of completed updates at which it begins and ends, or ().
  """

  def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
    self._folder = folder
    self._steps = range(*steps) if steps else range(0)
    self._begun = False

  def __enter__(self) -> "Trace":
    return self

  def before(self, step: int, count: int, state: Any) -> None:
    """Begins or ends it, before the `count` steps after `step` completed ones.

    Steps that are computed by one call are in the trace together.
    """
    if self._begun and step >= self._steps.stop:
      jax.block_until_ready(state)
      self.__exit__()
    elif not self._begun and set(range(step, step + count)) & set(self._steps):
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._begun = True

  def __exit__(self, *_) -> None:
    if self._begun:
      jax.profiler.stop_trace()
    self._begun = False


class StepTimer:
  """The pace of training, without evaluation, saving and compilation.

  Args:
    step: number of completed updates when it starts.
  """

  def __init__(self, step: int):
    self._step = step
    self._start = time.monotonic()

  @contextlib.contextmanager
  def paused(self, state: Any) -> Iterator[None]:
    """Leaves a `with` block out, once the steps up to `state` are done."""
    jax.block_until_ready(state)
    start = time.monotonic()
    yield
    self._start += time.monotonic() - start

  def steps_per_second(self, step: int) -> float:
    """Returns the steps a second since the last call."""
    now = time.monotonic()
    pace = (step - self._step) / max(now - self._start, 1e-9)
    self._step, self._start = step, now
    return pace
