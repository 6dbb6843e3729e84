"""Several processes on 127.0.0.1, of one or two devices each, are one run."""

import functools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

import flax_resnet
from flax_resnet import sharding, storage
from flax_resnet.training import train
from flax_resnet.training.workdir import locked
from flax_resnet.weights import files
from tests import recipes
from tests.drawing import variables_of
from tests.runs import mesh_of, rows_of

CHANGES = {
  **recipes.ONE_BLOCK,
  **recipes.FEW_DIGITS,
  "num_steps": 6,
  "log_every": 2,
  "eval_every": 3,
  "checkpoint_every": 2,
  "keep_checkpoints": 9,
}


@pytest.fixture
def recipe(tmp_path, data_dir):
  return recipes.write_tiny(tmp_path, data_dir, **CHANGES)


@pytest.fixture
def weights(tmp_path):
  """A file of weights with 7 classes."""
  model = flax_resnet.create_model(
    "cifar_resnet8", stage_sizes=(1,), stage_features=(4,), num_classes=7
  )
  path = tmp_path / "weights.safetensors"
  variables = variables_of(model, (1, 8, 8, 1))
  files.write(path, flax_resnet.to_torch(variables, model))
  return path


@pytest.fixture
def launch(recipe):
  """Starts so many processes of a run; the last calls `before` first."""
  started = []

  def launch(hosts, workdir, *flags, devices=2, before=None):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    xla_flags = re.sub(
      r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"]
    )
    for host in range(hosts):
      several = [
        f"--coordinator={address}",
        f"--num_processes={hosts}",
        f"--process_id={host}",
      ]
      started.append(
        subprocess.Popen(
          [
            *(sys.executable, recipes.ROOT / "train.py"),
            *(f"--config={recipe}", f"--workdir={workdir}", *flags),
            *(several if hosts > 1 else []),
          ],
          cwd=recipes.ROOT,
          env={
            **os.environ,
            "PYTHONPATH": str(recipes.ROOT),
            "XLA_FLAGS": xla_flags,
          },
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          preexec_fn=before if host == hosts - 1 else None,
        )
      )
    return started[-hosts:]

  yield launch
  for process in started:
    process.kill()


def finish(processes):
  """Waits for them and returns what each has printed."""
  outputs = [process.communicate(timeout=240) for process in processes]
  for process, (out, err) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, out + err
  return [out for out, _ in outputs]


def assert_same_curves(one, other):
  assert [row["step"] for row in one] == [row["step"] for row in other]
  for mine, theirs in zip(one, other, strict=True):
    assert mine == pytest.approx(theirs, abs=1e-4)


def back_to(step, workdir, copy):
  """Copies a run as it was when `step` had just been saved."""
  shutil.copytree(workdir, copy)
  (copy / "summary.json").unlink()
  for later in storage.checkpoint_steps(copy / "checkpoints"):
    if later > step:
      shutil.rmtree(copy / "checkpoints" / str(later))
  return copy


# All that touches the state where a run starts or continues.
TOGETHER = {
  "ema_decay": 0.9,
  "accumulate": 2,
  "model.norm_group_size": 16,
  "steps_per_call": 2,
}


def test_two_processes_of_one_device_are_one_run(
  launch, weights, tmp_path, data_dir
):
  """From weights with a new head; then on from what they have saved."""
  values = {"init_from": str(weights), **TOGETHER}
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  two, copy, one = (tmp_path / name for name in ("two", "copy", "one"))
  out, silent = finish(launch(2, two, *flags, devices=1))
  assert f"starts from the weights of {weights}, with a new head" in out
  assert "on 2 x cpu" in out
  assert "step" not in silent
  config = recipes.changed(recipes.tiny(data_dir), {**CHANGES, **values})
  train(config, one, mesh_of(2))
  assert_same_curves(rows_of(two), rows_of(one))
  assert rows_of(two)[-1]["val/count"] == 72
  assert {path.name for path in two.iterdir()} == {
    path.name for path in one.iterdir()
  }
  weights.unlink()
  out, _ = finish(launch(2, back_to(2, two, copy), *flags, devices=1))
  assert "continues after step 2" in out
  assert rows_of(copy) == rows_of(two)


@pytest.mark.deep
def test_two_hosts_make_the_run_of_one(launch, tmp_path):
  """Of two devices each; one goes on with what two have saved."""
  out, silent = finish(launch(2, tmp_path / "two"))
  assert "on 4 x cpu" in out
  assert "step" not in silent
  finish(launch(1, tmp_path / "one", devices=4))
  whole = rows_of(tmp_path / "one")
  assert_same_curves(rows_of(tmp_path / "two"), whole)
  copy = back_to(2, tmp_path / "two", tmp_path / "copy")
  (out,) = finish(launch(1, copy, devices=4))
  assert "continues after step 2" in out
  assert_same_curves(rows_of(copy), whole)


@pytest.mark.deep
@pytest.mark.parametrize("devices", [1, 2])
def test_two_hosts_train_a_head_alone(launch, weights, tmp_path, devices):
  """With the head of the weights, and saved so that two go on with it."""
  flags = [
    f"--config.init_from={weights}",
    "--config.freeze_trunk=True",
    "--config.ema_decay=0.9",
  ]
  run, alone = tmp_path / "two", tmp_path / "one"
  finish(launch(2, run, *flags, devices=devices))
  finish(launch(1, alone, *flags, devices=2 * devices))
  assert_same_curves(rows_of(run), rows_of(alone))
  copy = back_to(2, run, tmp_path / "copy")
  finish(launch(2, copy, *flags, devices=devices))
  assert rows_of(copy) == rows_of(run)


@pytest.mark.deep
def test_two_hosts_of_one_device_read_a_folder(launch, tmp_path):
  rng = np.random.default_rng(0)
  for name in ("a", "b"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(20):
      pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
      path = tmp_path / "photos" / name / f"{number}.png"
      Image.fromarray(pixels).save(path)
  flags = [
    f"--config.data.root={tmp_path / 'photos'}",
    "--config.data.name=folder",
    "--config.data.train_split=train[:80%]",
    "--config.data.eval_split=train[80%:]",
    "--config.data.in_memory=False",
    "--config.data.num_workers=1",
    "--config.augment.mean=(0.5, 0.5, 0.5)",
    "--config.augment.std=(0.5, 0.5, 0.5)",
    "--config.model.num_classes=2",
    "--config.batch_size=8",
  ]
  finish(launch(2, tmp_path / "two", *flags, devices=1))
  finish(launch(1, tmp_path / "one", *flags, devices=2))
  assert_same_curves(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"))


@pytest.mark.slow
def test_four_hosts_go_on_with_what_two_have_saved(launch, tmp_path):
  finish(launch(2, tmp_path / "two"))
  whole = rows_of(tmp_path / "two")
  copy = back_to(4, tmp_path / "two", tmp_path / "copy")
  out, *_ = finish(launch(4, copy))
  assert "on 8 x cpu" in out
  assert "continues after step 4" in out
  assert_same_curves(rows_of(copy), whole)


@pytest.mark.slow
def test_two_hosts_end_where_another_run_is(launch, tmp_path):
  """Only the first looks at the lock."""
  with locked(tmp_path / "run"):
    for process in launch(2, tmp_path / "run"):
      _, err = process.communicate(timeout=120)
      assert process.returncode == 2, err
      assert f"is in use by another run (process {os.getpid()} on " in err


def wait_for_step(workdir, step):
  for _ in range(1200):
    path = workdir / "metrics.jsonl"
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.1)
  raise TimeoutError


LONG = ("--config.num_steps=100000", "--config.log_every=1")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("signum", "codes"),
  [(signal.SIGTERM, (143, 143)), (signal.SIGINT, (143, 130))],
)
def test_a_signal_to_one_host_stops_all_at_one_step(
  launch, tmp_path, signum, codes
):
  processes = launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", 10)
  processes[1].send_signal(signum)
  lasts = []
  for process, code in zip(processes, codes, strict=True):
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    lasts.append(err.splitlines()[-1])
  assert lasts[0] == lasts[1]
  assert lasts[0].endswith("which is saved: the same command continues")
  step = int(lasts[0].split()[3].rstrip(","))
  assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_a_host_that_is_killed_ends_the_other_with_a_sentence(launch, tmp_path):
  processes = launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", 10)
  processes[1].kill()
  _, err = processes[0].communicate(timeout=150)
  assert processes[0].returncode == 1, err
  assert "error: another host is gone" in err
  assert "Traceback" not in err
  again = launch(2, tmp_path / "run", *LONG)
  wait_for_step(tmp_path / "run", rows_of(tmp_path / "run")[-1]["step"] + 5)
  steps = [row["step"] for row in rows_of(tmp_path / "run")]
  assert steps == list(range(1, len(steps) + 1))
  for process in again:
    process.kill()


@pytest.mark.slow
def test_a_host_that_cannot_write_says_so_and_ends_the_other(launch, tmp_path):
  """No file of the second host may be larger than 10 kB.

  Orbax lets each of two waits for the others take its ten minutes.
  """
  small = functools.partial(
    resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000)
  )
  first, second = launch(2, tmp_path / "run", *LONG, before=small)
  _, err = second.communicate(timeout=1500)
  assert second.returncode == 1, err
  assert err.startswith("error: no checkpoint can be written to "), err
  assert "File too large" in err
  _, err = first.communicate(timeout=150)
  assert first.returncode == 1, err
  assert "error: another host is gone" in err
  assert "Traceback" not in err


@pytest.mark.parametrize(
  ("environ", "several"),
  [
    ({}, False),
    ({"SLURM_NTASKS": "8"}, False),  # A shell within an allocation.
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
  ],
)
def test_launchers_are_known_by_their_variables(monkeypatch, environ, several):
  for name in ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  started = []
  monkeypatch.setattr(
    sharding.jax.distributed, "initialize", lambda *args: started.append(args)
  )
  sharding.join_hosts()
  assert started == ([()] if several else [])
