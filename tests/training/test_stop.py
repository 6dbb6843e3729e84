"""Signals at the awkward moments of a run."""

import signal

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import loop, Stopped, train
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.setup import Run
from flax_resnet.training.stop import StopSignals
from tests import recipes
from tests.runs import assert_same_bits, rows_of, saved_state


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
