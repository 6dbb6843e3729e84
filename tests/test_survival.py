"""Whatever happens to a run's process, its disk or its folder: nothing is lost.

`pytest -m slow tests/test_survival.py -s` prints what was done to it how often.
"""

import collections
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.training import checkpoint
from flax_resnet.training import load_recipe
from flax_resnet.training.log import Logbook
from tests.recipes import ROOT, write_tiny
from tests.training.test_loop import assert_same_bits, final_state
import train as script


@pytest.fixture
def recipe(tmp_path, data_dir):
  """A config file of the tiny net on digits, which saves every few steps."""
  return write_tiny(
    tmp_path,
    data_dir,
    num_steps=40,
    log_every=1,
    eval_every=20,
    checkpoint_every=5,
  )


@pytest.fixture
def start(recipe):
  """Starts train.py in a process of its own, on one device."""
  started = []

  def start(workdir, *flags, **environ):
    command = [sys.executable, ROOT / "train.py", f"--config={recipe}"]
    process = subprocess.Popen(
      [*command, f"--workdir={workdir}", *flags],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **environ},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def finish(process, code=0):
  """Waits for the end and returns what was printed."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, err
  assert "Traceback" not in err
  return out, err


def rows(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().splitlines() if path.exists() else []


def wait(process, condition):
  """Waits until something is so; whether it was before the process ended."""
  while process.poll() is None:
    if condition():
      return True
    time.sleep(0.002)
  return False


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


def same_run(recipe, flags, one, other):
  """Asserts that two finished runs have the same rows and the same bits."""
  config = load_recipe(recipe, [f.removeprefix("--config.") for f in flags])
  mesh = sharding.make_mesh(jax.devices()[:1])
  assert_same_bits(
    *(final_state(config, workdir, mesh) for workdir in (one, other))
  )
  clocks = ("seconds", "images_per_second")
  found = [
    [
      {
        key: value
        for key, value in json.loads(row).items()
        if key not in clocks
      }
      for row in rows(workdir)
    ]
    for workdir in (one, other)
  ]
  assert found[0] == found[1]
  assert [row["step"] for row in found[0]] == [*range(1, config.num_steps + 1)]


@pytest.mark.parametrize(
  ("kills", "num_steps"),
  [(2, 40), (60, 600)],
)
@pytest.mark.slow  # tests/test_train.py kills one process in every run.
def test_kill_at_any_time_costs_nothing(
  recipe, start, tmp_path, kills, num_steps
):
  """Run after run is killed and started again, to so many kills in all."""
  rng, done = random.Random(kills), collections.Counter()
  flags = [f"--config.num_steps={num_steps}"]
  finish(start(tmp_path / "whole", *flags))
  run = 0
  while sum(n for what, n in done.items() if what.startswith("killed")) < kills:
    workdir = tmp_path / f"run{(run := run + 1)}"
    while not (workdir / "summary.json").exists():
      process = start(workdir, *flags)
      moments = (while_saving, in_training, at_random)
      killed = sum(n for what, n in done.items() if what.startswith("killed"))
      if killed < kills:
        moment = rng.choice(moments) if kills > 2 else moments[killed]
        moment(process, workdir, rng)
        partial = any(workdir.glob("checkpoints/*tmp"))
        process.send_signal(signal.SIGKILL)
      _, err = process.communicate(timeout=300)
      assert process.returncode in (0, -9), err
      if process.returncode:
        done[f"killed {moment.__name__}"] += 1
        done["of these with a checkpoint half written"] += partial
        done["of these after a save"] += any(
          workdir.glob("checkpoints/?*[0-9]")
        )
    same_run(recipe, flags, workdir, tmp_path / "whole")
    done["runs that ended with the same bits"] += 1
  print(dict(done))


def one_sentence(err):
  assert err.startswith("error: ")
  assert err.count("\n") == 1, err
  return err


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 700 KB: a few checkpoints."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"no file system can be mounted here: {error}")
  yield disk
  subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_ends_with_a_sentence(recipe, start, tmp_path, small_disk):
  """What is complete stays; with more room the same command goes on."""
  flags = ["--config.keep_checkpoints=99"]
  workdir = small_disk / "run"
  _, err = finish(start(workdir, *flags), code=1)
  assert "No space left on device" in one_sentence(err)
  assert "once it can, the same command continues" in err
  steps = [int(p.name) for p in workdir.glob("checkpoints/*[0-9]")]
  assert steps
  assert steps == sorted(range(5, max(steps) + 1, 5), key=steps.index)
  for step in steps:
    assert checkpoint.damage(workdir / "checkpoints" / str(step)) is None
  shutil.copytree(workdir, tmp_path / "run")
  out, _ = finish(start(tmp_path / "run", *flags))
  assert f"continues after step {max(steps)}\n" in out
  assert len(rows(tmp_path / "run")) == 40


def test_a_folder_that_is_removed_ends_with_a_sentence(start, tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir, "--config.num_steps=2000")
  assert wait(process, lambda: len(rows(workdir)) > 5)
  workdir.rename(tmp_path / "elsewhere")
  _, err = finish(process, code=1)
  assert " be written" in one_sentence(err)
  # One that was about to be written then may make the folder anew.
  for folder in tmp_path.glob("*/checkpoints/*[0-9]"):
    assert checkpoint.damage(folder) is None


@pytest.mark.parametrize("what", ["write", "close"])
def test_a_file_that_cannot_be_written_ends_with_a_sentence(
  recipe, tmp_path, call_main, monkeypatch, what
):
  """Permissions would not stop a test that runs as root."""

  def refuse(*_):
    raise PermissionError(errno.EACCES, "Permission denied", "metrics.jsonl")

  monkeypatch.setattr(Logbook, what, refuse)
  workdir = tmp_path / "run"
  flags = ["--config.num_steps=1"]
  code, _, err = call_main(
    script.main, f"--config={recipe}", f"--workdir={workdir}", *flags
  )
  assert code == 1
  assert "cannot be written: [Errno 13] Permission denied" in one_sentence(err)


def test_a_workdir_has_one_run_at_a_time(recipe, start, tmp_path):
  """And none is locked by a process that is gone, however it went."""
  workdir = tmp_path / "run"
  flags = ["--config.num_steps=100000"]
  first = start(workdir, *flags)
  assert wait(first, lambda: len(rows(workdir)) > 5)
  _, err = finish(start(workdir, *flags), code=2)
  assert f"is in use by another run (process {first.pid} on " in err
  assert "Traceback" not in one_sentence(err)
  assert first.poll() is None
  before = len(rows(workdir))
  assert wait(first, lambda: len(rows(workdir)) > before)
  first.kill()
  first.wait()
  assert (workdir / ".lock").exists()
  second = start(workdir, *flags)
  assert wait(second, lambda: len(rows(workdir)) > before + 20)
  second.send_signal(signal.SIGTERM)
  finish(second, code=143)
  assert not (workdir / ".lock").exists()
  steps = [json.loads(row)["step"] for row in rows(workdir)]
  assert steps == list(range(1, len(steps) + 1))
