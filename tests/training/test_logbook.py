import json
import math

from matplotlib.axes import Axes
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from flax_resnet.training import curves
from flax_resnet.training.logbook import Logbook, read


def row(step):
  return {
    "epoch": step / 10,
    "train/loss": 2.0 / step,
    "train/top1": 0.5,
    "learning_rate": 0.1,
    "images_per_second": 123.4,
    **({"val/loss": 1.0, "val/top1": step / 100} if step % 2 == 0 else {}),
    **({"val/top5": 0.9, "val/count": 7} if step % 2 == 0 else {}),
  }


def log_steps(path, first, steps):
  log = Logbook(path, first, 10)
  for step in steps:
    log.write(step, row(step))
  log.close()


def test_a_folder_that_was_moved_is_told_at_the_next_row(tmp_path):
  (tmp_path / "run").mkdir()
  log = Logbook(tmp_path / "run", 0, 10)
  log.write(1, row(1))
  (tmp_path / "run").rename(tmp_path / "elsewhere")
  (tmp_path / "run").mkdir()  # A checkpoint was just being written.
  with pytest.raises(FileNotFoundError, match="run/metrics.jsonl"):
    log.write(2, row(2))
  log.close()


def test_a_row_is_a_json_object_a_line(tmp_path, capsys):
  log_steps(tmp_path, 0, range(1, 5))
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
  assert json.loads(lines[1])["val/top1"] == 0.02
  out = capsys.readouterr().out
  assert "step  1/10" in out
  assert "123 images/s" in out
  assert "evaluated: loss 1.0000  top1 4.00%" in out
  assert "on 7 images" in out


def test_a_restart_drops_the_steps_that_come_again(tmp_path):
  log_steps(tmp_path, 0, range(1, 7))
  log_steps(tmp_path, 4, range(5, 9))
  rows = read(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in rows] == list(range(1, 9))
  seconds = [r["seconds"] for r in rows]
  assert seconds == sorted(seconds)


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
  log_steps(tmp_path, 0, range(1, 5))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-20])
  log_steps(tmp_path, 4, [5])
  assert [r["step"] for r in read(path)] == [1, 2, 3, 5]


def test_a_loss_that_is_not_finite_is_null(tmp_path, capsys):
  log = Logbook(tmp_path, 0, 10)
  log.write(1, row(1) | {"train/loss": math.inf, "train/top1": 0.1})
  log.write(2, row(2) | {"train/loss": math.nan})
  log.close()
  assert "loss inf" in capsys.readouterr().out
  Logbook(tmp_path, 2, 10).close()  # Which writes the rows anew.
  text = (tmp_path / "metrics.jsonl").read_text()
  found = [json.loads(line)["train/loss"] for line in text.splitlines()]
  assert found == [None, None]
  rows = read(tmp_path / "metrics.jsonl")
  assert all(math.isnan(r["train/loss"]) for r in rows)
  assert [r["train/top1"] for r in rows] == [0.1, 0.5]


def test_a_log_with_nan_by_its_name_is_still_read(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "train/loss": NaN}\n')
  assert math.isnan(read(path)[0]["train/loss"])


def test_tensorboard_reads_every_step_once(tmp_path):
  log_steps(tmp_path, 0, range(1, 7))
  log_steps(tmp_path, 4, range(5, 9))
  events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  scalars = events.Scalars("train/loss")
  assert [event.step for event in scalars] == list(range(1, 9))


@pytest.mark.parametrize("first_bad", [1, 6])
def test_curves_say_what_is_not_finite(tmp_path, monkeypatch, first_bad):
  drawn = []
  monkeypatch.setattr(Axes, "legend", lambda axes, **_: drawn.append(axes))
  rows = [{"step": step, **row(step)} for step in range(1, 11)]
  for bad in rows[first_bad - 1 :]:
    bad["train/loss"] = math.nan
  curves.draw(rows, "a net on a set", tmp_path / "curves.png")
  labels = drawn[0].get_legend_handles_labels()[1]
  some = "(not finite)" if first_bad == 1 else "(5 of 10 not finite)"
  assert labels == [f"training, as optimised {some}", "evaluation"]


def test_a_label_says_what_a_logarithmic_axis_lacks():
  values = [0.0, math.nan, 1.0, 0.0]
  assert curves.noted("a", values) == "a (1 of 4 not finite)"
  assert curves.noted("a", values, log=True) == (
    "a (1 of 4 not finite, 2 of 4 zero)"
  )
  assert curves.noted("a", [0.0], log=True) == "a (zero)"
  assert curves.noted("a", [1.0], log=True) == "a"


def test_losses_of_many_magnitudes_have_ticks(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(Axes, "legend", lambda axes, **_: drawn.append(axes))
  rows = [{"step": step, **row(step)} for step in range(1, 11)]
  rows[0]["train/loss"] = 7e21
  curves.draw(rows, "a net on a set", tmp_path / "curves.png")
  low, high = drawn[0].get_ylim()
  inside = [t for t in drawn[0].get_yticks() if low <= t <= high]
  assert len(inside) >= 3


def test_the_curves_are_a_picture(tmp_path):
  from PIL import Image

  rows = [{"step": step, **row(step)} for step in range(1, 11)]
  curves.draw(rows, "a net on a set", tmp_path / "curves.png")
  picture = Image.open(tmp_path / "curves.png").convert("RGB")
  assert picture.width > 1000
  colours = {colour for _, colour in picture.getcolors(1 << 24)}
  assert (0xC8, 0x44, 0x2C) in colours  # The evaluation was drawn.
  assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
