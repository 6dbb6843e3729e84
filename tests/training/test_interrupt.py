"""Signals at the awkward moments of a run."""

import signal

import pytest

from flax_resnet.training import loop, Stopped, train
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.interrupt import StopSignals, until
from flax_resnet.training.run import Run
from tests.training.test_loop import assert_same_bits, final_state, rows_of


@pytest.fixture
def config(config):
  config.update(num_steps=8, log_every=2, eval_every=4, checkpoint_every=4)
  config.keep_checkpoints = 9
  return config


def in_evaluation(monkeypatch, number):
  """Sends SIGTERM in the evaluation of this number."""
  send_in(monkeypatch, loop, "evaluate", number)


def in_compilation(monkeypatch, _):
  send_in(monkeypatch, Run, "train_calls", 1)


def in_saving(monkeypatch, number):
  send_in(monkeypatch, Checkpoints, "save", number)


def send_in(monkeypatch, where, name, number):
  function, calls = getattr(where, name), []

  def wrapped(*args):
    calls.append(None)
    if len(calls) == number:
      signal.raise_signal(signal.SIGTERM)
    return function(*args)

  monkeypatch.setattr(where, name, wrapped)
  return calls


@pytest.mark.parametrize(
  ("send", "number", "step"),
  [
    (in_evaluation, 1, 4),
    (in_evaluation, 2, 8),  # The last step: all that is missing is to evaluate.
    (in_compilation, 1, 1),
    (in_saving, 1, 5),
  ],
)
def test_a_signal_stops_within_a_step_and_a_save(
  config, tmp_path, mesh, monkeypatch, send, number, step
):
  train(config, tmp_path / "whole", mesh)
  with monkeypatch.context() as patch:
    send(patch, number)
    with pytest.raises(Stopped, match=f"^stopped after step {step}, which is "):
      train(config, tmp_path / "parts", mesh)
  assert (tmp_path / "parts" / "checkpoints" / str(step)).is_dir()
  assert not (tmp_path / "parts" / "summary.json").exists()
  summary = train(config, tmp_path / "parts", mesh)
  assert summary["finished"]
  # What was not logged yet is saved with step 8, and logged without it.
  assert_same_bits(
    final_state(config, tmp_path / "whole", mesh).replace(sums=None),
    final_state(config, tmp_path / "parts", mesh).replace(sums=None),
  )
  assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_a_signal_after_the_last_evaluation_ends_nothing(
  config, tmp_path, mesh, monkeypatch
):
  sent = send_in(monkeypatch, Checkpoints, "wait", 1)
  assert train(config, tmp_path, mesh)["finished"]
  assert sent


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(signum):
  before = signal.getsignal(signum)
  with StopSignals() as signals:
    assert not signals.to_stop()
    signal.raise_signal(signum)
    assert signals.to_stop()
    assert signals.received == signum
    for second in (signal.SIGINT, signal.SIGTERM):
      assert signal.getsignal(second) is signal.SIG_DFL
  assert signal.getsignal(signum) is before


def test_items_end_where_it_is_time_to_stop():
  seen = []
  for item in until(lambda: len(seen) == 3, range(10)):
    seen.append(item)
  assert seen == [0, 1, 2]
