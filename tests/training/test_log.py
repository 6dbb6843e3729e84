import json
import math

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from flax_resnet.training.log import describe, Log, read_rows
from flax_resnet.training.setup import set_up
from tests import recipes


def row(step):
  values = {
    "epoch": step / 10,
    "train/loss": 2.0 / step,
    "train/top1": 0.5,
    "learning_rate": 0.1,
    "images_per_second": 123.4,
  }
  if step % 2 == 0:
    values |= {"val/loss": 1.0, "val/top1": step / 100}
    values |= {"val/top5": 0.9, "val/count": 7}
  return values


def log_steps(path, first, steps):
  log = Log(path, first, 10)
  for step in steps:
    log.write(step, row(step))
  log.close()
  return log


def steps_in(path):
  return [row["step"] for row in read_rows(path / "metrics.jsonl")]


def test_a_row_is_a_json_object_a_line(tmp_path, capsys):
  log = log_steps(tmp_path, 0, range(1, 5))
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
  assert json.loads(lines[1])["val/top1"] == 0.02
  out = capsys.readouterr().out
  assert "step  1/10" in out
  assert "123 images/s" in out
  assert "evaluated: loss 1.0000  top1 4.00%" in out
  assert "on 7 images" in out
  assert log.has_row(3)
  assert not log.has_row(5)
  assert [row["step"] for row in log.evaluations()] == [2, 4]


def test_a_restart_drops_the_steps_that_come_again(tmp_path):
  """From metrics.jsonl and from TensorBoard's events."""
  log_steps(tmp_path, 0, range(1, 7))
  log_steps(tmp_path, 4, range(5, 9))
  rows = read_rows(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(1, 9))
  seconds = [row["seconds"] for row in rows]
  assert seconds == sorted(seconds)
  events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  scalars = events.Scalars("train/loss")
  assert [event.step for event in scalars] == list(range(1, 9))


def test_events_hold_a_row_once_it_is_written(tmp_path):
  """A run that is killed loses none; TensorBoard is not a line behind."""
  log = Log(tmp_path, 0, 10)
  for step in (1, 2):
    log.write(step, row(step))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")][-1] == step
  log.close()


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
  log_steps(tmp_path, 0, range(1, 5))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-20])
  log_steps(tmp_path, 4, [5])
  assert steps_in(tmp_path) == [1, 2, 3, 5]


def test_other_hosts_read_and_do_not_write(tmp_path, capsys):
  log_steps(tmp_path, 0, [1, 2])
  before = (tmp_path / "metrics.jsonl").read_bytes()
  capsys.readouterr()
  log = Log(tmp_path, 1, 10, writes=False)
  log.advance(1)
  log.write(2, row(2))
  log.print("a line")
  log.close()
  assert [row["step"] for row in log.rows] == [1, 2]
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  assert capsys.readouterr() == ("", "")


def test_a_folder_that_was_moved_is_noticed_at_the_next_row(tmp_path):
  (tmp_path / "run").mkdir()
  log = Log(tmp_path / "run", 0, 10)
  log.write(1, row(1))
  (tmp_path / "run").rename(tmp_path / "elsewhere")
  (tmp_path / "run").mkdir()  # A checkpoint was just being written.
  with pytest.raises(FileNotFoundError, match="run/metrics.jsonl"):
    log.write(2, row(2))
  log.close()


def test_a_loss_that_is_not_finite_is_null(tmp_path, capsys):
  log = Log(tmp_path, 0, 10)
  log.write(1, row(1) | {"train/loss": math.inf, "train/top1": 0.1})
  log.write(2, row(2) | {"train/loss": math.nan})
  log.close()
  assert "loss inf" in capsys.readouterr().out
  for _ in range(2):
    text = (tmp_path / "metrics.jsonl").read_text()
    found = [json.loads(line)["train/loss"] for line in text.splitlines()]
    assert found == [None, None]
    Log(tmp_path, 2, 10).close()  # It writes the rows anew.
  rows = read_rows(tmp_path / "metrics.jsonl")
  assert all(math.isnan(r["train/loss"]) for r in rows)
  assert [r["train/top1"] for r in rows] == [0.1, 0.5]


def test_a_log_with_nan_by_its_name_is_still_read(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "train/loss": NaN}\n')
  assert math.isnan(read_rows(path)[0]["train/loss"])


# Changes of a recipe, and the line that announces each.
ANNOUNCED = [
  ({}, "all of the 64 examples of a step"),
  ({"model": {"norm_group_size": 8}}, "groups of 8 of the 64 examples"),
  ({"model": {"norm": "none"}}, "no BatchNorm"),
  (
    {"freeze_trunk": True, "init_from": "weights"},
    "BatchNorm keeps its running statistics",
  ),
  (
    {"freeze_trunk": True, "init_from": "weights"},
    "the head alone is trained: 50 of ",
  ),
  (
    {"accumulate": 4, "model": {"norm_group_size": 8}},
    "a step adds up the gradients of 4 parts of 16 examples",
  ),
  ({"ema_decay": 0.9}, "it keeps 0.9 of itself every step"),
  ({"ema_decay": 0.9, "ema_every": 20}, "of itself every 20 steps"),
  (
    {"data": {"early_image_sizes": ((0.5, 4),)}},
    "training images are of 4 pixels until step 2",
  ),
  (
    {"data": {"image_size": (8, 10), "early_image_sizes": ((0.5, (4, 6)),)}},
    "training images are of 4x6 pixels until step 2",
  ),
]


@pytest.mark.parametrize(("changes", "line"), ANNOUNCED)
def test_a_run_is_announced(data_dir, mesh, changes, line):
  config = recipes.one_block(data_dir).to_dict()
  for key, value in changes.items():
    is_section = isinstance(value, dict)
    config[key] = config[key] | value if is_section else value
  run = set_up(config, mesh)
  state = jax.eval_shape(run.drawn_state).replace(step=np.int32(0))
  lines = describe(run, state, ["from somewhere"])
  assert lines.startswith("cifar_resnet8")
  assert "1,437 to train on and 360 to evaluate on\n4 steps, 22.45" in lines
  assert "\nfrom somewhere" in lines
  assert line in lines
  assert "continues" not in lines
  state = state.replace(step=np.int32(3))
  assert describe(run, state).endswith("\ncontinues after step 3")
