"""Signals at the awkward moments of a run."""

import json
import signal

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import loop, Stopped, train
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.setup import Run
from flax_resnet.training.stop import out_of_patience, StopSignals
from tests import recipes
from tests.runs import assert_same_bits, rows_of, saved_state, train_to


@pytest.fixture(scope="module")
def config(data_dir):
  config = recipes.one_block(data_dir)
  config.update(num_steps=8, log_every=2, eval_every=4, checkpoint_every=4)
  config.keep_checkpoints = 9
  return config


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
  """The last state and the rows of the run when nothing disturbs it."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  mesh = sharding.make_mesh(jax.devices()[:1])
  train(config, workdir, mesh)
  return saved_state(workdir), rows_of(workdir)


def send_in(monkeypatch, owner, name, number):
  """Sends SIGTERM at the start of a call of this number."""
  function, calls = getattr(owner, name), []

  def wrapped(*args):
    calls.append(None)
    if len(calls) == number:
      signal.raise_signal(signal.SIGTERM)
    return function(*args)

  monkeypatch.setattr(owner, name, wrapped)
  return calls


@pytest.mark.parametrize(
  ("owner", "name", "number", "step"),
  [
    (loop, "evaluate", 1, 4),
    (loop, "evaluate", 2, 8),  # The last step: it only has to be evaluated.
    (Run, "train_inputs", 1, 1),  # Before the step is compiled.
    (Checkpoints, "save", 1, 5),
  ],
)
def test_a_signal_stops_within_a_step_and_a_save(
  config, tmp_path, mesh, monkeypatch, undisturbed, owner, name, number, step
):
  with monkeypatch.context() as patch:
    send_in(patch, owner, name, number)
    with pytest.raises(Stopped, match=f"^stopped after step {step}, which is "):
      train(config, tmp_path, mesh)
  assert (tmp_path / "checkpoints" / str(step)).is_dir()
  assert not (tmp_path / "summary.json").exists()
  assert train(config, tmp_path, mesh).summary["finished"]
  state, rows = undisturbed
  # What was not logged yet is saved with step 8, and logged without it.
  assert_same_bits(
    saved_state(tmp_path).replace(sums=None),
    state.replace(sums=None),
  )
  assert rows_of(tmp_path) == rows


def test_a_signal_after_the_last_evaluation_ends_nothing(
  config, tmp_path, mesh, monkeypatch
):
  sent = send_in(monkeypatch, Checkpoints, "wait", 1)
  assert train(config, tmp_path, mesh).summary["finished"]
  assert sent


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(signum):
  before = signal.getsignal(signum)
  with StopSignals() as signals:
    assert not signals.should_stop()
    signal.raise_signal(signum)
    assert signals.should_stop()
    assert signals.received == signum
    for second in (signal.SIGINT, signal.SIGTERM):
      assert signal.getsignal(second) is signal.SIG_DFL
  assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
  ("scores", "patience", "ends"),
  [
    ([], 1, False),
    ([0.5], 1, False),
    ([0.5, 0.6], 1, False),
    ([0.5, 0.5], 1, True),  # No better.
    ([0.5, 0.4], 2, False),
    ([0.5, 0.4, 0.45], 2, True),  # Better than the last, and not the best.
    ([0.5, 0.4, 0.51], 2, False),
    ([-1.0, -1.0], 1, True),
    ([float("nan"), 0.1], 1, False),
    ([0.5] * 9, None, False),
  ],
)
def test_patience_ends_with_evaluations_that_are_no_better(
  scores, patience, ends
):
  assert out_of_patience(scores, patience) == ends


@pytest.fixture
def impatient(config):
  """A run of 40 steps that learns nothing."""
  config = recipes.changed(
    config,
    {"num_steps": 40, "optim.learning_rate": 1e-12, "model.norm": "none"},
  )
  with config.unlocked():
    config.patience = 2
  return config


def test_a_run_out_of_patience_ends_and_says_so(
  impatient, tmp_path, mesh, capsys
):
  summary = train(impatient, tmp_path, mesh).summary
  steps = [row["step"] for row in rows_of(tmp_path) if "val/top1" in row]
  assert steps == [4, 8, 12]
  assert (summary["step"], summary["stopped_early"]) == (12, True)
  assert summary["best/step"] == 4
  assert summary == json.loads((tmp_path / "summary.json").read_text())
  out = capsys.readouterr().out
  assert "no better result in 2 evaluations: ends after step 12 of 40" in out
  # Again it is finished; with more patience it goes on.
  before = saved_state(tmp_path)
  assert train(impatient, tmp_path, mesh).summary["step"] == 12
  assert_same_bits(before, saved_state(tmp_path))
  with impatient.unlocked():
    impatient.patience = 4
  assert train(impatient, tmp_path, mesh).summary["step"] == 20


def test_a_run_that_was_killed_ends_at_the_same_step(
  impatient, tmp_path, mesh, monkeypatch
):
  """With an average that warms up, and images that are mixed for an epoch."""
  impatient = recipes.changed(
    impatient,
    {
      "checkpoint_every": 3,
      "ema_decay": 0.9,
      "ema_warmup": True,
      "augment.mixup": 0.2,
      "augment.mixup_off_epoch": 0.4,
    },
  )
  train(impatient, tmp_path / "whole", mesh)
  for stop in (2, 9, 11):
    train_to(impatient, tmp_path / "parts", mesh, stop, monkeypatch)
  train(impatient, tmp_path / "parts", mesh)
  whole, parts = (tmp_path / name for name in ("whole", "parts"))
  assert_same_bits(saved_state(whole), saved_state(parts))
  assert rows_of(whole) == rows_of(parts)
  assert saved_state(parts).step == 12
