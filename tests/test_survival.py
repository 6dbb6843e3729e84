"""Whatever happens to a run's process, its disk or its folder: nothing is lost.

`pytest -m slow tests/test_survival.py -s` prints what was done to it how often.
"""

import collections
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from flax_resnet import storage
from flax_resnet.training.log import Log
from tests import recipes, runs
import train as script

# It saves every few steps.
CHANGES = {
  **recipes.ONE_BLOCK,
  **recipes.FEW_DIGITS,
  "num_steps": 40,
  "log_every": 1,
  "eval_every": 20,
  "checkpoint_every": 5,
}


@pytest.fixture
def recipe(tmp_path, data_dir):
  return recipes.write_tiny(tmp_path, data_dir, **CHANGES)


@pytest.fixture
def run(recipe, call_main):
  """Runs train.py in this process, which has eight devices."""
  return functools.partial(call_main, script.main, f"--config={recipe}")


def assert_one_sentence(err, wanted):
  assert err.startswith("error: ")
  assert err.count("\n") == 1, err
  assert wanted in err


def rows(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().splitlines() if path.exists() else []


def assert_sound(workdir):
  """Asserts that all checkpoints are whole; returns their steps."""
  steps = storage.checkpoint_steps(workdir / "checkpoints")
  for step in steps:
    assert storage.damage(workdir / "checkpoints" / str(step)) is None
  return sorted(steps)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 500 KB: a few checkpoints."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", disk]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"no file system can be mounted here: {error}")
  yield disk
  subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_ends_with_a_sentence(run, tmp_path, small_disk):
  """What is complete stays; with more room the same command goes on."""
  flags = ["--config.keep_checkpoints=99"]
  workdir = small_disk / "run"
  code, _, err = run(f"--workdir={workdir}", *flags)
  assert code == 1
  assert_one_sentence(err, "No space left on device")
  assert "once it can, the same command continues" in err
  steps = assert_sound(workdir)
  assert steps == list(range(5, max(steps) + 1, 5))
  shutil.copytree(workdir, tmp_path / "run")
  code, out, _ = run(f"--workdir={tmp_path / 'run'}", *flags)
  assert code == 0
  assert f"continues after step {max(steps)}\n" in out
  assert len(rows(tmp_path / "run")) == 40


def test_a_folder_that_is_removed_ends_with_a_sentence(
  run, tmp_path, monkeypatch
):
  workdir, write = tmp_path / "run", Log.write

  def move_after_step_12(log, step, values):
    write(log, step, values)
    if step == 12:
      workdir.rename(tmp_path / "elsewhere")

  monkeypatch.setattr(Log, "write", move_after_step_12)
  code, _, err = run(f"--workdir={workdir}")
  assert code == 1
  assert_one_sentence(err, " be written")
  assert 5 in assert_sound(tmp_path / "elsewhere")
  # What was about to be written then may make the folder anew.
  assert_sound(workdir)


HOLD = """
import pathlib
import sys

from flax_resnet.training.workdir import locked

with locked(pathlib.Path(sys.argv[1])):
  print("locked", flush=True)
  sys.stdin.read()
"""


def test_a_workdir_has_one_run_at_a_time(run, tmp_path):
  """tests/test_train.py kills one that holds it."""
  workdir = tmp_path / "run"
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLD, workdir],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == "locked\n"
  code, _, err = run(f"--workdir={workdir}")
  assert code == 2
  held = f"is in use by another run (process {holder.pid} on "
  assert_one_sentence(err, held)
  assert [path.name for path in workdir.iterdir()] == [".lock"]
  holder.communicate("")
  assert not (workdir / ".lock").exists()
  code, _, _ = run(f"--workdir={workdir}", "--config.num_steps=1")
  assert code == 0


@pytest.fixture
def start(recipe):
  """Starts train.py in a process of its own, on one device."""
  started = []

  def start(workdir, *flags):
    command = [sys.executable, recipes.ROOT / "train.py", f"--config={recipe}"]
    environ = {"PYTHONPATH": str(recipes.ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen(
      [*command, f"--workdir={workdir}", *flags],
      cwd=recipes.ROOT,
      env={**os.environ, **environ},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def wait(process, condition):
  """Waits until something is so, or the process has ended."""
  while process.poll() is None and not condition():
    time.sleep(0.002)


def at_random(process, workdir, rng):
  time.sleep(rng.uniform(0, 6))


def in_training(process, workdir, rng):
  before = len(rows(workdir))
  wait(process, lambda: len(rows(workdir)) > before)
  time.sleep(rng.uniform(0, 0.3))


def while_saving(process, workdir, rng):
  partial = "*.orbax-checkpoint-tmp"
  before = {*workdir.glob(f"checkpoints/{partial}")}
  wait(process, lambda: {*workdir.glob(f"checkpoints/{partial}")} - before)
  time.sleep(rng.uniform(0, 0.05))


@pytest.mark.slow
def test_kill_at_any_time_costs_nothing(start, tmp_path):
  """Run after run is killed and started again, 60 times in all."""
  rng, done = random.Random(60), collections.Counter()
  flags = ["--config.num_steps=600"]
  _, err = start(tmp_path / "whole", *flags).communicate()
  assert not err
  run = 0
  while done["killed"] < 60:
    workdir = tmp_path / f"run{(run := run + 1)}"
    while not (workdir / "summary.json").exists():
      process = start(workdir, *flags)
      if done["killed"] < 60:
        moment = rng.choice((while_saving, in_training, at_random))
        moment(process, workdir, rng)
        partial = any(workdir.glob("checkpoints/*tmp"))
        process.send_signal(signal.SIGKILL)
      _, err = process.communicate(timeout=300)
      assert process.returncode in (0, -9), err
      if process.returncode:
        done["killed"] += 1
        done[f"killed {moment.__name__}"] += 1
        done["of these with a checkpoint half written"] += partial
        done["of these after a save"] += any(
          workdir.glob("checkpoints/?*[0-9]")
        )
    runs.assert_same_bits(
      runs.saved_state(workdir), runs.saved_state(tmp_path / "whole")
    )
    found = runs.rows_of(workdir)
    assert found == runs.rows_of(tmp_path / "whole")
    assert [row["step"] for row in found] == list(range(1, 601))
    done["runs that ended with the same bits"] += 1
  print(dict(done))
