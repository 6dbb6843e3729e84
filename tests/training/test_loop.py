"""Whole runs: their files, where they go on, and what ends them."""

import gzip
import inspect
import json
import re
import shutil
import threading
import time

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet import plots, storage
from flax_resnet.training import (
  InputError,
  load_recipe,
  loop,
  RunError,
  train,
)
from flax_resnet.training.evaluation import evaluate
from flax_resnet.training.log import read_rows
from tests import recipes, runs
from tests.spoiling import spoil


@pytest.fixture(scope="module")
def long_config(data_dir):
  """The config of `whole`; an epoch of it has 5.6 steps."""
  return recipes.changed(
    recipes.tiny(data_dir),
    {
      "num_steps": 60,
      "log_every": 4,
      "eval_every": 20,
      "checkpoint_every": 20,
      "ema_decay": 0.7,
      "ema_every": 2,
      "model.stage_sizes": (1,),
      "model.stage_features": (16,),
      "data.train_split": "train[:25%]",
      "data.eval_split": "test[:25%]",
      "augment.flip": False,  # Digits that are mirrored are hard to learn.
      "augment.random_erasing": 0.1,
    },
  )


@pytest.fixture(scope="module")
def whole(long_config, tmp_path_factory):
  """The workdir of a finished run, which nothing has stopped."""
  workdir = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "plots", plots)
    train(long_config, workdir, runs.mesh_of(1))
  return workdir


def test_a_run_leaves_the_files_that_were_promised(whole, long_config):
  assert {path.name for path in whole.iterdir()} == {
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "summary.json",
    "tensorboard",
  }
  assert (whole / "curves.png").read_bytes()
  written = json.loads((whole / "config.json").read_text())
  assert written == json.loads(json.dumps(long_config.to_dict()))
  rows = read_rows(whole / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(4, 61, 4))
  training = {
    *("step", "epoch", "seconds", "learning_rate", "images_per_second"),
    *("train/loss", "train/top1", "memory"),
  }
  evaluation = {
    *("val/loss", "val/top1", "val/top5", "val/count"),
    *("val/raw_loss", "val/raw_top1"),
  }
  for row in rows:
    due = row["step"] % 20 == 0
    assert row.keys() == (training | evaluation if due else training)
    assert 1e8 < row["memory"] < 1e11
  assert rows[-1]["epoch"] == pytest.approx(60 * 64 / 359)
  assert rows[-1]["val/count"] == 90
  summary = json.loads((whole / "summary.json").read_text())
  assert (summary["finished"], summary["step"]) == (True, 60)
  assert summary["val/top1"] == rows[-1]["val/top1"]
  assert summary["best/val/top1"] == max(row.get("val/top1", 0) for row in rows)


def test_a_run_learns(whole):
  rows = read_rows(whole / "metrics.jsonl")
  assert rows[-1]["val/top1"] > 0.5
  assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.5


def test_a_stopped_run_ends_with_the_same_bits(
  whole, long_config, tmp_path, mesh, monkeypatch
):
  """Stopped before its first row, and between two others and two saves."""
  for stop in (1, 31):
    runs.train_to(long_config, tmp_path, mesh, stop, monkeypatch)
  train(long_config, tmp_path, mesh)
  runs.assert_same_bits(
    runs.saved_state(whole),
    runs.saved_state(tmp_path),
  )
  assert runs.rows_of(whole) == runs.rows_of(tmp_path)


def test_several_steps_by_one_call_are_the_same_run(
  whole, long_config, tmp_path, mesh, monkeypatch
):
  """Calls of 3, 1, 3 steps, a stop, then of 1, 3, 1, ...: the same bits."""
  config = recipes.changed(long_config, {"steps_per_call": 3})
  runs.train_to(config, tmp_path, mesh, 7, monkeypatch)
  train(config, tmp_path, mesh)
  one, several = (runs.saved_state(workdir) for workdir in (whole, tmp_path))
  runs.assert_same_bits(one, several)
  assert runs.rows_of(whole) == runs.rows_of(tmp_path)


def test_a_run_from_python_says_its_rows_and_returns_its_variables(
  config, tmp_path, mesh, monkeypatch
):
  """In a thread, as tools that try many values run it."""
  config = recipes.changed(config, {"log_every": 1, "profile": (1, 3)})
  runs.train_to(config, tmp_path, mesh, 2, monkeypatch)
  rows, results = [], []
  thread = threading.Thread(
    target=lambda: results.append(
      fr.train(config, tmp_path, mesh, on_row=rows.append)
    )
  )
  thread.start()
  thread.join()
  ((summary, variables),) = results
  written = read_rows(tmp_path / "metrics.jsonl")
  assert rows == [row for row in written if row["step"] > 2]
  assert summary == json.loads((tmp_path / "summary.json").read_text())
  saved = fr.from_pretrained(tmp_path)[1]
  jax.tree.map(np.testing.assert_array_equal, dict(variables), saved)


def test_a_trace_of_some_steps(config, tmp_path, mesh):
  train(recipes.changed(config, {"profile": (1, 3)}), tmp_path / "run", mesh)
  (folder,) = (tmp_path / "run" / "tensorboard" / "plugins").glob("profile/*")
  assert list(folder.glob("*.xplane.pb"))
  with gzip.open(folder / "perfetto_trace.json.gz") as file:
    assert json.load(file)["traceEvents"]
  train(config, tmp_path / "other", mesh)
  runs.assert_same_bits(
    *(runs.saved_state(tmp_path / name) for name in ("run", "other"))
  )


def test_a_trace_begins_with_the_call_of_its_first_step(config, tmp_path, mesh):
  values = {"profile": (1, 2), "steps_per_call": 2, "num_steps": 4}
  train(recipes.changed(config, values | {"log_every": 2}), tmp_path, mesh)
  assert list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))


def test_a_finished_run_is_left_as_it_is(whole, long_config, mesh, capsys):
  files = [whole / name for name in ("metrics.jsonl", "summary.json")]
  before = [path.read_bytes() for path in files]
  steps = {path.name for path in (whole / "checkpoints").iterdir()}
  assert train(long_config, whole, mesh).summary["finished"]
  assert [path.read_bytes() for path in files] == before
  assert {path.name for path in (whole / "checkpoints").iterdir()} == steps
  assert "continues after step 60" in capsys.readouterr().out


def test_a_finished_run_without_its_metrics_is_evaluated_again(
  whole, long_config, tmp_path, mesh
):
  before = read_rows(whole / "metrics.jsonl")[-1]
  workdir = shutil.copytree(whole, tmp_path / "run")
  (workdir / "metrics.jsonl").write_text("damaged")
  assert (
    train(long_config, workdir, mesh).summary["val/top1"] == before["val/top1"]
  )
  (row,) = read_rows(workdir / "metrics.jsonl")
  assert row["step"] == before["step"]


def test_a_run_is_lengthened_and_not_shortened(
  whole, long_config, tmp_path, mesh, capsys
):
  """A finished one goes on, by the rate of the longer schedule."""
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  config = recipes.changed(long_config, {"num_steps": 50})
  before = runs.files_of(workdir)
  with pytest.raises(InputError, match=r"num_steps .* 50 steps, .* of 60: "):
    train(config, workdir, mesh)
  assert runs.files_of(workdir) == before
  config = recipes.changed(long_config, {"num_steps": 62, "log_every": 1})
  assert train(config, workdir, mesh).summary["step"] == 62
  out = capsys.readouterr().out
  assert "continues with log_every (there 4, now 1)" in out
  match = re.search(
    r"lengthened from 60 to 62 steps.* after step 60 is (\S+), where it was 0$",
    out,
    re.MULTILINE,
  )
  rows = read_rows(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows[-3:]] == [60, 61, 62]
  assert rows[-2]["learning_rate"] == pytest.approx(float(match[1]), rel=1e-3)
  assert runs.rows_of(workdir)[:15] == runs.rows_of(whole)


def test_evaluation_and_prediction_take_the_average(whole, long_config, mesh):
  row = read_rows(whole / "metrics.jsonl")[-1]
  state = runs.saved_state(whole)
  _, variables = fr.from_pretrained(whole)
  runs.assert_same_bits(variables, state.average)
  run = runs.make_run(long_config)

  def loss(variables):
    means = evaluate(run.eval_step, variables, run.eval_batches(), mesh)
    return means["val/loss"]

  assert loss(state.average) == row["val/loss"]
  assert abs(loss(state.variables) - row["val/loss"]) > 1e-3


def test_what_is_due_is_done_in_this_order(
  data_dir, tmp_path, mesh, monkeypatch
):
  """The reasons stand at the loop."""
  done = []

  def record(owner, name):
    function = getattr(owner, name)

    def recorded(*args):
      done.append(name)
      return function(*args)

    monkeypatch.setattr(owner, name, recorded)

  record(loop, "check_finite")
  record(loop, "evaluate")
  record(loop.Log, "write")
  record(loop.Checkpoints, "save")
  train(recipes.tiniest(data_dir), tmp_path, mesh)
  at_2, at_4 = ["check_finite", "write"], ["check_finite", "evaluate", "write"]
  assert done == [*at_2, *at_4, "save"]


def test_each_image_size_is_compiled_once_and_continued(
  data_dir, tmp_path, mesh, monkeypatch
):
  """Two steps on 4 pixels, then two on 8."""
  early = {"data.early_image_sizes": ((0.5, 4),)}
  config = recipes.changed(recipes.tiniest(data_dir), early)
  compiled = []
  compile_lowered = jax.stages.Lowered.compile

  def counted(self, *args, **kwargs):
    compiled.append(self)
    return compile_lowered(self, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(jax.stages.Lowered, "compile", counted)
    train(config, tmp_path / "whole", mesh)
  assert len(compiled) == 2
  runs.train_to(config, tmp_path / "parts", mesh, 1, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  runs.assert_same_bits(
    runs.saved_state(tmp_path / "whole"),
    runs.saved_state(tmp_path / "parts"),
  )


def test_images_that_are_no_squares_are_trained_on(
  data_dir, tmp_path, mesh, monkeypatch
):
  """To the same bits if stopped."""
  values = {
    "data.image_size": (6, 10),
    "data.early_image_sizes": ((0.5, (4, 7)),),
    "data.random_resized_crop": True,
    "data.policy": "augmix",
    "data.center_crop_fraction": 0.9,
    "augment.crop_padding": 2,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "augment.random_erasing": 0.5,
  }
  config = recipes.changed(recipes.tiniest(data_dir), values)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train(config, whole, mesh)
  runs.train_to(config, parts, mesh, 3, monkeypatch)
  # As the command line has it.
  again = load_recipe(parts, ["data.image_size=6,10"])
  train(again, parts, mesh)
  runs.assert_same_bits(runs.saved_state(whole), runs.saved_state(parts))
  assert runs.rows_of(whole) == runs.rows_of(parts)
  about = whole / "checkpoints" / "4" / "about" / "metadata"
  assert json.loads(about.read_text())["image_shape"] == [6, 10, 1]


@pytest.fixture
def nonfinite_config(data_dir):
  """Twelve steps, of which `spoil` makes some NaN."""
  return recipes.changed(
    recipes.tiniest(data_dir),
    {
      "num_steps": 12,
      "log_every": 3,
      "eval_every": 12,
      "checkpoint_every": 4,
      "keep_checkpoints": 9,
    },
  )


def saved_steps(workdir):
  steps = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(step) for step in steps)


def test_a_run_ends_with_the_step_that_is_not_finite(
  nonfinite_config, tmp_path, mesh, monkeypatch
):
  spoil(monkeypatch, nonfinite_config, 8)
  for _ in range(2):  # Started again, it comes to the same step.
    with pytest.raises(RunError, match="^step 8 is not finite: "):
      train(nonfinite_config, tmp_path, mesh)
    assert saved_steps(tmp_path) == [4]
    assert [row["step"] for row in runs.rows_of(tmp_path)] == [3, 6]
    assert not (tmp_path / "summary.json").exists()
  state = runs.saved_state(tmp_path)
  jax.tree.map(lambda x: np.testing.assert_(np.isfinite(x).all()), state)


def test_a_run_leaves_out_as_many_steps_as_it_may(
  nonfinite_config, tmp_path, mesh, monkeypatch
):
  """Also when it is stopped between two of them: it knows how many."""
  spoil(monkeypatch, nonfinite_config, 4, 5, 6, 8)
  config = recipes.changed(nonfinite_config, {"skip_nonfinite": 4})
  train(config, tmp_path / "whole", mesh)
  runs.train_to(config, tmp_path / "parts", mesh, 7, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  runs.assert_same_bits(
    runs.saved_state(tmp_path / "whole"),
    runs.saved_state(tmp_path / "parts"),
  )
  rows = runs.rows_of(tmp_path / "whole")
  assert rows == runs.rows_of(tmp_path / "parts")
  assert [row["train/skipped_steps"] for row in rows] == [0, 3, 4, 4]
  assert ["train/loss" in row for row in rows] == [True, False, True, True]
  # The optimizer's own count, which a skipped step does not move.
  rate = runs.make_run(config).learning_rate
  assert rows[2]["learning_rate"] == pytest.approx(float(rate(9 - 4 - 1)))


def test_a_config_that_cannot_be_run_writes_nothing(config, tmp_path, mesh):
  config = recipes.changed(config, {"init_from": "nope.safetensors"})
  with pytest.raises(InputError):
    train(config, tmp_path / "run", mesh)
  assert not (tmp_path / "run").exists()


def test_a_config_may_have_numbers_of_numpy(config, tmp_path, mesh):
  values = recipes.changed(config, {"num_steps": 1}).to_dict()
  values |= {"seed": np.int64(1), "batch_size": np.int32(values["batch_size"])}
  train(values, tmp_path / "run", mesh)
  assert storage.read_config(tmp_path / "run")["seed"] == 1


def test_a_name_is_no_config(tmp_path):
  with pytest.raises(
    InputError, match="config is 'digits': give that of load_"
  ):
    inspect.unwrap(train)("digits", tmp_path / "run")


def test_the_pace_leaves_out_what_is_paused(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  timer = loop.StepTimer(step=10)
  now[0] += 2.0
  with timer.paused(None):
    now[0] += 100.0
  now[0] += 2.0
  assert timer.steps_per_second(18) == pytest.approx(2.0)
  now[0] += 1.0
  assert timer.steps_per_second(19) == pytest.approx(1.0)
