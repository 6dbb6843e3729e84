"""What a run tells: metrics.jsonl, TensorBoard events, the terminal."""

from collections.abc import Mapping
import json
import math
import pathlib
import sys
import time
from typing import Any

import tqdm

from flax_resnet.training.schema import InputError
from flax_resnet.training.workdir import to_json, write_text

Row = dict[str, Any]
# float32's largest: no number that a run writes is above it.
_MAX = 2.0**128


class Logbook:
  """The log of a run; continued where a restarted run takes up again.

  Rows after `step` are dropped, as the run will come to these steps again, so
  each logged step stands in the file once.

  Args:
    workdir: Of the run.
    step: From which the run goes on.
    num_steps: To which it goes.
    writes: Whether this host writes; on all others nothing is told.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int, num_steps: int, writes: bool = True
  ):
    self._path = workdir / "metrics.jsonl"
    self._writes = writes
    self.rows = [row for row in read(self._path) if row["step"] <= step]
    self._seconds_before = self.seconds()
    self._start = time.monotonic()
    self._first_step = step
    self._first_step_at = None
    if not writes:
      return
    # It takes a second where PyTorch is installed, which it imports.
    from tensorboardX import SummaryWriter

    write_text(self._path, "".join(to_json(row) + "\n" for row in self.rows))
    self._file = self._path.open("a")
    self._events = SummaryWriter(
      str(workdir / "tensorboard"),
      purge_step=step + 1,
      # Two starts within a second would share a file.
      filename_suffix=f".{step:09d}",
    )
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=step,
      unit="step",
      disable=not sys.stderr.isatty(),
    )

  def say(self, line: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    if self._writes:
      self._bar.write(line, file=sys.stdout)
      sys.stdout.flush()

  def advance(self, steps: int) -> None:
    """Moves the progress bar on."""
    if self._first_step_at is None:
      self._first_step_at = time.monotonic()
    if self._writes:
      self._bar.update(steps)

  def seconds(self) -> float:
    """Returns how long the run took to its last row, earlier parts included."""
    return self.rows[-1].get("seconds", 0.0) if self.rows else 0.0

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Records what was measured after `step` updates.

    Raises:
      OSError: When it cannot be written, or the file is no longer in its place.
    """
    seconds = self._seconds_before + time.monotonic() - self._start
    row = {"step": step, **values, "seconds": round(seconds, 3)}
    self.rows.append(row)
    if not self._writes:
      return
    self._path.stat()  # The open file would go with a folder that is moved.
    self._file.write(to_json(row) + "\n")
    self._file.flush()
    for key, value in values.items():
      self._events.add_scalar(key, value, step)
    self._events.flush()
    self.say(self._line(row))
    if "images_per_second" in row:
      self._bar.set_postfix_str(f"{row['images_per_second']:,.0f} images/s")

  def knows(self, step: int) -> bool:
    """Whether a row of `step` was written."""
    return any(row["step"] == step for row in self.rows)

  def evaluated(self) -> list[Row]:
    """Returns the rows of evaluated steps."""
    return [row for row in self.rows if is_evaluation(row)]

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
      line += f"  loss {row['train/loss']:.4f}  top1 {row['train/top1']:.2%}"
      line += f"  lr {row['learning_rate']:.4f}"
      line += f"  {row['images_per_second']:,.0f} images/s"
      line += f"  {self._left(row['step'])} left"
    if row.get("train/skipped_steps"):
      line += f"  {row['train/skipped_steps']} steps skipped"
    if row.get("train/skipped"):
      line += f"  {row['train/skipped']} broken images skipped"
    if "val/top1" in row:
      line += f"\n  evaluated: loss {row['val/loss']:.4f}"
      line += f"  top1 {row['val/top1']:.2%}  top5 {row['val/top5']:.2%}"
      line += f"  on {row['val/count']:,} images"
    return line

  def _left(self, step: int) -> str:
    """How long the run will still take, at the mean pace since its start."""
    since = time.monotonic() - (self._first_step_at or self._start)
    pace = since / max(step - self._first_step, 1)
    return tqdm.tqdm.format_interval(pace * (self._bar.total - step))


def read(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a metrics.jsonl, without lines that are none.

  Such are a line cut short by a crash, and what a failing disk leaves. A number
  that was not finite stands there as null, and is NaN here.

  Raises:
    InputError: When the file cannot be read.
  """
  try:
    text = path.read_text(errors="replace") if path.exists() else ""
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  rows = map(_row, text.splitlines())
  return [row for row in rows if row is not None]


def is_evaluation(row: Mapping[str, Any]) -> bool:
  """Whether a row tells all that is told of an evaluation."""
  return {"val/top1", "val/count"} <= row.keys()


def _row(line: str) -> Row | None:
  try:
    row = json.loads(line)
    row = {key: math.nan if v is None else v for key, v in row.items()}
    counts = type(row["step"]) is int and 0 <= row["step"] < _MAX
  except (AttributeError, KeyError, RecursionError, ValueError):
    return None
  return row if counts and all(map(_is_number, row.values())) else None


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and not _MAX <= abs(value) < math.inf
