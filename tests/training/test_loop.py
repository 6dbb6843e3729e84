"""Whole runs: resume, devices, evaluation, the files of a workdir."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import sharding
from flax_resnet.training import loop
from flax_resnet.training import metrics
from flax_resnet.training import Stopped
from flax_resnet.training import train
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.log import read
from flax_resnet.training.setup import prepare


def final_state(config, workdir, mesh):
  run = prepare(config.to_dict(), mesh)
  checkpoints = Checkpoints(workdir / "checkpoints", 2)
  step = checkpoints.latest_step()
  state = checkpoints.restore(step, run.initial_state())
  checkpoints.close()
  return jax.device_get(state)


def train_to(config, workdir, mesh, stop, monkeypatch):
  """Trains until the step `stop` is done, then gets SIGTERM."""
  advance = loop.Logbook.advance
  done = []

  def count(self, steps):
    advance(self, steps)
    done.append(steps)
    if self._first_step + sum(done) == stop:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Logbook, "advance", count)
    with pytest.raises(Stopped) as stopped:
      train(config, workdir, mesh)
  assert stopped.value.exit_code == 143
  assert f"after step {stop}" in str(stopped.value)


def rows_of(workdir):
  """Returns what a run has logged but for the time it took."""
  clocks = ("seconds", "images_per_second")
  return [
    {key: value for key, value in row.items() if key not in clocks}
    for row in read(workdir / "metrics.jsonl")
  ]


def assert_same_bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_the_files_that_were_promised(config, tmp_path, mesh):
  config.num_steps = 4
  summary = train(config, tmp_path, mesh)
  files = {path.name for path in tmp_path.iterdir()}
  assert files == {
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "summary.json",
    "tensorboard",
  }
  written = json.loads((tmp_path / "config.json").read_text())
  assert written == json.loads(json.dumps(config.to_dict()))
  assert json.loads((tmp_path / "summary.json").read_text()) == summary
  assert summary["finished"] is True
  assert summary["step"] == 4
  rows = read(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [2, 4]
  assert rows[1].keys() == {
    *("step", "epoch", "seconds", "learning_rate", "images_per_second"),
    *("train/loss", "train/top1"),
    *("val/loss", "val/top1", "val/top5", "val/count"),
  }
  assert rows[1]["epoch"] == pytest.approx(4 * 64 / 1437)
  assert rows[1]["val/count"] == 360
  assert summary["val/top1"] == rows[1]["val/top1"]


def test_a_run_learns(config, tmp_path, mesh):
  config.num_steps = 60
  config.eval_every = config.checkpoint_every = 60
  config.augment.update(rotation=0.0, translation=0.0, scaling=0.0, shear=0.0)
  summary = train(config, tmp_path, mesh)
  assert summary["val/top1"] > 0.6
  rows = read(tmp_path / "metrics.jsonl")
  assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.5


def test_a_stopped_run_ends_with_the_same_bits(
  config, tmp_path, mesh, monkeypatch
):
  """22.5 steps are an epoch here: the stops lie in the middle of epochs."""
  config.num_steps = 25
  config.log_every = 4
  config.eval_every = 10
  config.checkpoint_every = 10
  train(config, tmp_path / "whole", mesh)
  for stop in (1, 7, 8, 24):
    train_to(config, tmp_path / "parts", mesh, stop, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  assert_same_bits(
    final_state(config, tmp_path / "whole", mesh),
    final_state(config, tmp_path / "parts", mesh),
  )
  assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_several_steps_by_one_call_are_the_same_run(
  config, tmp_path, mesh, monkeypatch
):
  """Calls of 3, 1, 3 steps, a stop, then of 1, 2, 2, 3, ...: the same bits."""
  config.num_steps = 25
  config.log_every = 4
  config.eval_every = 10
  config.checkpoint_every = 10
  train(config, tmp_path / "one", mesh)
  config.steps_per_call = 3
  train_to(config, tmp_path / "three", mesh, 7, monkeypatch)
  train(config, tmp_path / "three", mesh)
  assert_same_bits(
    final_state(config, tmp_path / "one", mesh).params,
    final_state(config, tmp_path / "three", mesh).params,
  )
  losses = [
    [row.get("train/loss") for row in read(tmp_path / name / "metrics.jsonl")]
    for name in ("one", "three")
  ]
  assert losses[0] == losses[1]


def test_a_call_ends_where_something_is_due(config, mesh):
  config.update(
    num_steps=17,
    steps_per_call=5,
    log_every=4,
    eval_every=6,
    checkpoint_every=100,
  )
  run = prepare(config.to_dict(), mesh)
  assert list(run._counts(0)) == [4, 2, 2, 4, 4, 1]
  assert list(run._counts(9)) == [3, 4, 1]


def test_a_finished_run_is_left_as_it_is(config, tmp_path, mesh, capsys):
  train(config, tmp_path, mesh)
  files = [tmp_path / name for name in ("metrics.jsonl", "summary.json")]
  before = [path.read_bytes() for path in files]
  state = final_state(config, tmp_path, mesh)
  summary = train(config, tmp_path, mesh)
  assert summary["finished"]
  assert [path.read_bytes() for path in files] == before
  assert_same_bits(final_state(config, tmp_path, mesh), state)
  assert "continues after step 4" in capsys.readouterr().out


def prepared(config, devices, group, dtype, steps_per_call=1):
  """The digits recipe, whose rate still warms up for its first 50 steps."""
  config.num_steps = 660
  config.log_every = config.eval_every = config.checkpoint_every = 20
  config.steps_per_call = steps_per_call
  config.model.norm_group_size = group
  with config.model.unlocked():
    config.model.dtype = config.model.param_dtype = dtype
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return prepare(config.to_dict(), mesh)


def after_20_steps(*args, **kwargs):
  run = prepared(*args, **kwargs)
  state = run.initial_state()
  calls = run.train_calls(0)
  while state.step < 20:
    state = run.train_step(state, next(calls)[0])
  return jax.device_get(state.variables)


def curve_of_50_steps(config, *args):
  """The training loss of each step."""
  run = prepared(config, *args)
  state = run.initial_state()
  calls = run.train_calls(0)
  losses = []
  for _ in range(50):
    state = run.train_step(state.replace(sums=zeros()), next(calls)[0])
    losses.append(float(state.sums["loss"]) / int(state.sums["count"]))
  return np.array(losses)


def zeros():
  """Sums that do not round what they sum."""
  return {
    key: x if key == "count" else x.astype(float)
    for key, x in metrics.zeros().items()
  }


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, 8, 32])
@pytest.mark.parametrize(
  ("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-4)]
)
def test_curves_are_the_same_on_any_number_of_devices(
  config, group, dtype, limit
):
  """In float64 to 7e-16, in float32 to 2e-5 at half the recipe's rate.

  At the whole rate, ReLU's kink makes of a sum that float32 rounds in another
  order up to 2e-3 of the loss within these steps.
  """
  config.optim.learning_rate *= 1 if dtype == "float64" else 0.5
  with jax.enable_x64(dtype == "float64"):
    one = curve_of_50_steps(config, 1, group, dtype)
    assert one[-5:].mean() < one[:5].mean() - 0.1
    for devices in (2, 4, 8):
      other = curve_of_50_steps(config, devices, group, dtype)
      difference = np.abs(other / one - 1).max()
      print(f"{dtype}, {group}, {devices} devices: {difference:.1e}")
      assert difference <= limit


def relative_difference(a, b):
  a, b = (
    np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    for tree in (a, b)
  )
  return np.linalg.norm(a - b) / np.linalg.norm(a)


@pytest.mark.parametrize(
  ("group", "dtype", "limit"),
  [
    (8, "float64", 1e-9),
    (None, "float32", 1e-4),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (None, "float64", 1e-9),
        (32, "float64", 1e-9),
        (8, "float32", 1e-4),
        (32, "float32", 1e-4),
      )
    ),
  ],
)
def test_the_number_of_devices_changes_nothing(config, group, dtype, limit):
  """In float32 sums are rounded in another order, as ReLU's kink makes visible.

  That grows with the width of the net; float64 shows that the computation is
  the same.
  """
  with jax.enable_x64(dtype == "float64"):
    one = after_20_steps(config, 1, group, dtype)
    assert {x.dtype for x in jax.tree.leaves(one)} == {np.dtype(dtype)}
    for devices, steps_per_call in ((2, 1), (8, 1), (8, 20)):
      other = after_20_steps(config, devices, group, dtype, steps_per_call)
      assert relative_difference(one, other) <= limit


def test_the_norm_group_size_changes_the_run(config):
  whole = after_20_steps(config, 1, None, "float32")
  groups = after_20_steps(config, 1, 8, "float32")
  assert relative_difference(whole, groups) > 1e-3


def test_evaluation_counts_every_image_once(config):
  seen = set()
  for devices in (1, 8):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    for batch_size in (7, 64, 512):
      config.eval_batch_size = batch_size
      run = prepare(config.to_dict(), mesh)
      state = run.initial_state()
      result = loop.evaluate(run.eval_step, state, run.eval_batches(), mesh)
      assert result["val/count"] == 360
      seen.add((result["val/top1"], round(result["val/loss"], 4)))
  assert len(seen) == 1


def test_evaluation_weighs_every_image_alike(config, mesh):
  """Against the logits of all images in one batch."""
  config.eval_batch_size = 7
  run = prepare(config.to_dict(), mesh)
  state = run.initial_state()
  result = loop.evaluate(run.eval_step, state, run.eval_batches(), mesh)
  images = np.stack([r["image"] for r in run.dataset.eval.source])
  labels = np.array([r["label"] for r in run.dataset.eval.source])
  scaled = (images / 255 - config.augment.mean[0]) / config.augment.std[0]
  scaled = jnp.asarray(scaled, jnp.float32)
  logits = run.model.apply(state.variables, scaled, train=False)
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert result["val/top1"] == (logits.argmax(-1) == labels).mean()
  wanted = -log_p[np.arange(360), labels].mean()
  assert result["val/loss"] == pytest.approx(wanted, rel=1e-5)
