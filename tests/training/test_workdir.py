"""The folder of a run: whose config it holds, and who may write there."""

import json
import os

import pytest

from flax_resnet.training import InputError, RunError
from flax_resnet.training.workdir import (
  check_workdir,
  locked,
  write_errors_reported,
)

CONFIG = {
  "seed": 0,
  "model": {"name": "resnet50", "stage_features": (4, 8)},
  "optim": {"learning_rate": 0.1},
  "loss": {},
}
DEFAULTS = {
  "seed": 0,
  "init_from": None,
  "model.shortcut": "projection",
  "optim.betas": (0.9, 0.999),
  "optim.momentum": 0.9,
  "loss.label_smoothing": 0.0,
}


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  return tmp_path


def changed(section, **changes):
  config = CONFIG if section is None else CONFIG[section]
  config = config | changes
  return config if section is None else CONFIG | {section: config}


@pytest.mark.parametrize(
  "config",
  [
    CONFIG,
    changed("optim", betas=[0.9, 0.999], momentum=0.9),
    changed("model", stage_features=[4, 8], shortcut="projection"),
    changed("loss", label_smoothing=0),
    changed(None, init_from=None),
    {
      key: value for key, value in CONFIG.items() if key not in ("seed", "loss")
    },
  ],
)
def test_a_key_at_its_default_is_a_key_left_out(workdir, config):
  check_workdir(workdir, config, DEFAULTS)
  # And the other way round, a run of before in which it is written.
  (workdir / "config.json").write_text(json.dumps(config))
  check_workdir(workdir, CONFIG, DEFAULTS)


@pytest.mark.parametrize(
  ("config", "difference"),
  [
    (changed(None, seed=1), "seed (there 0, now 1)"),
    (changed("optim", momentum=0.8), "optim.momentum (there 0.9, now 0.8)"),
    (changed("optim", betas=(0.9,)), "betas (there [0.9, 0.999], now [0.9])"),
    (changed("loss", name="x"), 'loss.name (there absent, now "x")'),
    ({"model": CONFIG["model"]}, "learning_rate (there 0.1, now absent)"),
  ],
)
def test_a_run_of_another_config_is_refused(workdir, config, difference):
  before = (workdir / "config.json").read_bytes()
  with pytest.raises(InputError) as error:
    check_workdir(workdir, config, DEFAULTS)
  assert str(error.value).startswith(
    f"workdir {workdir} holds a run of another config, which differs in "
  )
  assert difference in str(error.value)
  assert str(error.value).count("(there ") == 1
  assert (workdir / "config.json").read_bytes() == before


def test_of_many_differences_some_are_named(workdir):
  config = CONFIG | {f"key{number}": 1 for number in range(40)}
  with pytest.raises(InputError, match="and 30 more"):
    check_workdir(workdir, config, DEFAULTS)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_is_not_json_is_refused(workdir, text):
  (workdir / "config.json").write_text(text)
  with pytest.raises(InputError, match="config.json is not JSON"):
    check_workdir(workdir, CONFIG, DEFAULTS)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
  check_workdir(tmp_path / "new" / "run", CONFIG, DEFAULTS)
  assert not (tmp_path / "new").exists()
  (tmp_path / "file").write_text("text")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(InputError, match="is not a folder"):
      check_workdir(path, CONFIG, DEFAULTS)
  # Tests may run as root, whom permissions do not stop.
  monkeypatch.setattr(os, "access", lambda *_: False)
  with pytest.raises(InputError, match="is not writable"):
    check_workdir(tmp_path / "run", CONFIG, DEFAULTS)


def test_a_write_error_ends_the_run(tmp_path):
  with (
    pytest.raises(RunError, match="No space left"),
    write_errors_reported(tmp_path),
  ):
    raise OSError(28, "No space left on device")
  with pytest.raises(BrokenPipeError), write_errors_reported(tmp_path):
    raise BrokenPipeError  # Of the terminal, not of the workdir.


def test_a_lock_is_made_and_removed(tmp_path):
  """tests/test_survival.py has two processes try the same workdir."""
  for _ in range(2):
    with locked(tmp_path / "run"):
      holder = (tmp_path / "run" / ".lock").read_text()
      assert holder.startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "run" / ".lock").exists()
