"""The log of a run: metrics.jsonl, TensorBoard events and the terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from etils import epy
import tqdm

from flax_resnet import bucket, storage
from flax_resnet.errors import InputError
from flax_resnet.models.variables import count_parameters
from flax_resnet.training.setup import Run
from flax_resnet.training.state import TrainState

try:
  import resource
except ImportError:  # Windows.
  resource = None

with epy.lazy_imports():  # A second where PyTorch is installed: it imports it.
  from tensorboardX import event_file_writer
  from tensorboardX.proto import event_pb2

Row = dict[str, Any]
# float32's largest: no number that a run writes is above it.
_MAX = 2.0**128


class Log:
  """The log of a run, which goes on where a restarted run goes on.

  Rows after `step` are dropped, as the run will come to these steps again, so
  each logged step is in the file once.

  Args:
    workdir: folder of the run.
    step: step from which the run goes on.
    num_steps: last step of the run.
    writes: whether this host writes and prints; default True.
    on_row: function that is called with each row that this host has written;
      None (default) for none.

  Attributes:
    rows: rows of the run, those of earlier parts included.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int,
    num_steps: int,
    writes: bool = True,
    on_row: Callable[[Row], object] | None = None,
  ):
    self._on_row = on_row
    self._path = workdir / "metrics.jsonl"
    self._writes = writes
    self.rows = [row for row in read_rows(self._path) if row["step"] <= step]
    self._seconds_before = self.seconds()
    self._start = time.monotonic()
    self._first_step = step
    self._first_step_at = None
    if not writes:
      return
    with storage.replacing(self._path) as partial:
      lines = [storage.to_json(row) + "\n" for row in self.rows]
      partial.write_text("".join(lines))
    self._file = self._path.open("a")
    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Not its SummaryWriter, whose `flush` leaves the newest point in a queue.
    self._events = event_file_writer.EventsWriter(
      str(folder / "events"),
      # Two starts within a second would share a file.
      f".{step:09d}",
    )
    # TensorBoard drops the points after `step` that an earlier part has left.
    self._write_event(step + 1, session_log={"status": "START"})
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=step,
      unit="step",
      disable=not sys.stderr.isatty(),
    )

  def print(self, line: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    if self._writes:
      self._bar.write(bucket.shown(line), file=sys.stdout)
      sys.stdout.flush()

  def advance(self, steps: int) -> None:
    """Moves the progress bar on by a number of steps."""
    if self._first_step_at is None:
      self._first_step_at = time.monotonic()
    if self._writes:
      self._bar.update(steps)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes and prints the row of a step.

    Raises:
      OSError: if it cannot be written, or the file has been moved.
    """
    seconds = self._seconds_before + time.monotonic() - self._start
    row = {"step": step, **values, "seconds": round(seconds, 3)}
    self.rows.append(row)
    if not self._writes:
      return
    self._path.stat()  # The open file would go with a folder that is moved.
    self._file.write(storage.to_json(row) + "\n")
    self._file.flush()
    points = [{"tag": k, "simple_value": v} for k, v in values.items()]
    self._write_event(step, summary={"value": points})
    self.print(self._line(row))
    if "images_per_second" in row:
      self._bar.set_postfix_str(f"{row['images_per_second']:,.0f} images/s")
    if self._on_row is not None:
      self._on_row(dict(row))

  def _write_event(self, step: int, **contents: Any) -> None:
    event: Any = event_pb2  # Its messages exist at run time only.
    self._events.write_event(
      event.Event(wall_time=time.time(), step=step, **contents)
    )
    self._events.flush()

  def has_row(self, step: int) -> bool:
    """Whether there is a row of a step."""
    return any(row["step"] == step for row in self.rows)

  def evaluations(self) -> list[Row]:
    """Returns the rows with an evaluation."""
    return [row for row in self.rows if has_evaluation(row)]

  def seconds(self) -> float:
    """Returns the time that the run took up to its last row, in seconds."""
    return self.rows[-1].get("seconds", 0.0) if self.rows else 0.0

  def close(self) -> None:
    """Closes the files."""
    if self._writes:
      self._bar.close()
      self._events.close()
      self._file.close()

  def _line(self, row: Row) -> str:
    total = self._bar.total
    line = f"step {row['step']:>{len(str(total))}}/{total}"
    line += f"  epoch {row['epoch']:.2f}"
    if "train/loss" in row:
      line += f"  loss {row['train/loss']:.4f}"
      if "train/top1" in row:
        line += f"  top1 {row['train/top1']:.2%}"
      line += f"  lr {row['learning_rate']:.4f}"
      line += f"  {row['images_per_second']:,.0f} images/s"
      line += f"  {self._time_left(row['step'])} left"
    if row.get("train/skipped_steps"):
      line += f"  {row['train/skipped_steps']} steps skipped"
    if row.get("train/skipped"):
      line += f"  {row['train/skipped']} broken images skipped"
    if has_evaluation(row):
      line += f"\n  evaluated: loss {row['val/loss']:.4f}"
      names = ("map", "top1", "top5", "raw_map", "raw_top1")
      shares = {name: row.get(f"val/{name}") for name in names}
      for name, share in shares.items():
        if share is not None:
          line += f"  {name.replace('raw_', 'raw ')} {share:.2%}"
      line += f"  on {row['val/count']:,} images"
    return line

  def _time_left(self, step: int) -> str:
    """Returns "01:23", by the mean pace since the first step was done."""
    since = time.monotonic() - (self._first_step_at or self._start)
    pace = since / max(step - self._first_step, 1)
    return tqdm.tqdm.format_interval(pace * (self._bar.total - step))


def read_rows(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a metrics.jsonl.

  Lines that are none are left out: one cut short by a crash, or what a failing
  disk leaves. A number that was not finite is null in the file, and NaN here.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    text = path.read_text(errors="replace") if path.exists() else ""
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  rows = map(_parse_row, text.splitlines())
  return [row for row in rows if row is not None]


def _parse_row(line: str) -> Row | None:
  try:
    row = json.loads(line)
    row = {key: math.nan if v is None else v for key, v in row.items()}
    counts = type(row["step"]) is int and 0 <= row["step"] < _MAX
  except (AttributeError, KeyError, RecursionError, ValueError):
    return None
  return row if counts and all(map(_is_number, row.values())) else None


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and not _MAX <= abs(value) < math.inf


def resident_memory() -> int:
  """Returns the memory that this process takes of the machine, in bytes.

  That is now on Linux, and at most so far elsewhere.
  """
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
  except (OSError, ValueError):
    pass
  if resource is None:
    return 0
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def has_evaluation(row: Mapping[str, Any]) -> bool:
  """Whether a row has an evaluation, whole."""
  return "val/count" in row and ("val/top1" in row or "val/map" in row)


def describe(run: Run, state: TrainState, origin: Sequence[str] = ()) -> str:
  """Returns lines on what is about to be trained, and from where.

  Args:
    run: the run.
    state: state from which it goes on.
    origin: lines on where that state comes from.
  """
  return "\n".join([*_subject(run, state), *origin, *_options(run, state)])


def _subject(run: Run, state: TrainState) -> Iterator[str]:
  """Yields lines on network, data, length, devices and BatchNorm."""
  height, width, channels = run.dataset.image_shape
  devices = list(run.mesh.devices.flat)
  yield (
    f"{run.title}: {count_parameters(state.params):,} parameters, "
    f"{run.model.num_classes} classes, images {height}x{width}x{channels}, "
    f"{len(run.dataset.train):,} to train on and "
    f"{len(run.dataset.eval):,} to evaluate on"
  )
  if run.model.norm != "batch":
    norm = "no BatchNorm"
  elif run.freezing.keeps_all_batch_stats:
    norm = "BatchNorm keeps its running statistics"
  else:
    group = run.model.norm_group_size
    over = f"groups of {group} of" if group else "all of"
    norm = (
      f"BatchNorm normalizes over {over} the {run.recipe.batch_size} examples "
      "of a step"
    )
  yield (
    f"{run.num_steps:,} steps, {run.steps_per_epoch:.2f} an epoch, on "
    f"{len(devices)} x {devices[0].device_kind}; {norm}"
  )


def _pixels(shape: Sequence[int]) -> str:
  """Returns "160", or "96x128" of images that are not square."""
  height, width, _ = shape
  return str(height) if height == width else f"{height}x{width}"


def _options(run: Run, state: TrainState) -> Iterator[str]:
  """Yields lines on what is not so in every run."""
  recipe = run.recipe
  if freezing := run.freezing:
    trained = count_parameters(freezing.trained(state.params))
    yield (
      f"{freezing}: {trained:,} of {count_parameters(state.params):,} "
      "parameters"
      + (
        "" if freezing.until is None else f"; all from step {freezing.until:,}"
      )
    )
  if (parts := recipe.accumulate) > 1:
    yield (
      f"a step adds up the gradients of {parts} parts of "
      f"{recipe.batch_size // parts} examples"
    )
  if early := run.dataset.train.early:
    sizes = [
      f"of {_pixels(reader.image_shape)} pixels until step "
      f"{round(until * run.num_steps):,}"
      for until, reader in early
    ]
    yield f"training images are {', '.join(sizes)}"
  if recipe.ema_decay:
    every = recipe.ema_every
    yield (
      "evaluation takes the moving average of parameters and running "
      f"statistics: it keeps {recipe.ema_decay:g} of itself every "
      + ("step" if every == 1 else f"{every:,} steps")
    )
  if state.step:
    yield f"continues after step {int(state.step)}"
