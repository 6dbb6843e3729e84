"""The SLURM script of docs/devices.md, with stand-ins for SLURM's commands."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import pages, recipes

# Starts some tasks, with the variables that SLURM gives them. At the start of a
# job it sends them SIGTERM, as `--signal` says, once the run has logged.
SRUN = """#!{python}
import os, pathlib, subprocess, sys, time
command = sys.argv[1:]
while command[0].startswith("-"):
  command.pop(0)
tasks = [
  subprocess.Popen(
    command,
    env={{
      **os.environ,
      "SLURM_NTASKS": os.environ["TASKS"],
      "SLURM_PROCID": str(task),
      "SLURM_LOCALID": str(task),
      "SLURM_STEP_NODELIST": "127.0.0.1",
      "SLURM_STEP_NUM_NODES": "1",
    }},
  )
  for task in range(int(os.environ["TASKS"]))
]
rows = pathlib.Path({workdir!r}) / "metrics.jsonl"
if "SLURM_RESTART_COUNT" not in os.environ:
  while all(t.poll() is None for t in tasks) and (
    not rows.exists() or not rows.read_text()
  ):
    time.sleep(0.02)
  for task in tasks:
    task.terminate()
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
"""


@pytest.fixture
def job(tmp_path, data_dir):
  """Runs the script with so many tasks, as a job that was started before."""
  changes = {
    **recipes.ONE_BLOCK,
    **recipes.FEW_DIGITS,
    "num_steps": 100,
    "log_every": 2,
    "eval_every": 100,
    "checkpoint_every": 100,
  }
  recipe = recipes.write_tiny(tmp_path, data_dir, **changes)
  workdir, calls = tmp_path / "run", tmp_path / "calls"
  (tmp_path / "bin").mkdir()
  for name, text in (
    ("srun", SRUN.format(python=sys.executable, workdir=str(workdir))),
    ("scontrol", SCONTROL.format(calls=calls)),
  ):
    (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / name).chmod(0o755)
  (script,) = (
    text
    for _, text in pages.fences(recipes.ROOT / "docs" / "devices.md")
    if "#SBATCH" in text
  )
  for ours, here in (
    ("python train.py", f"{sys.executable} train.py"),
    ("configs/imagenet_resnet50.py", recipe),
    ("/shared/runs/r50", workdir),
    ("/shared/tfds", data_dir),
  ):
    assert ours in script
    script = script.replace(ours, str(here))
  (tmp_path / "job.sh").write_text(script)
  xla_flags = re.sub(
    r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"]
  )

  def job(restarts, tasks):
    environ = {
      **os.environ,
      "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
      "PYTHONPATH": str(recipes.ROOT),
      "XLA_FLAGS": xla_flags,
      "SLURM_CPUS_PER_TASK": "1",
      "TASKS": str(tasks),
      "SLURM_JOB_ID": str(os.getpid() + restarts),  # The port follows it.
    }
    if restarts:
      environ["SLURM_RESTART_COUNT"] = str(restarts)
    ended = subprocess.run(
      ["bash", tmp_path / "job.sh"],
      cwd=recipes.ROOT,
      env=environ,
      check=False,
      capture_output=True,
      text=True,
      timeout=240,
    )
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    step = json.loads(rows[-1])["step"]
    requeued = calls.read_text().split() if calls.exists() else []
    return ended.returncode, step, requeued, ended.stderr

  return job


@pytest.mark.parametrize(
  ("tasks", "later_tasks"),
  [
    pytest.param(2, 2, marks=pytest.mark.deep),
    pytest.param(4, 2, marks=pytest.mark.slow),
    pytest.param(2, 4, marks=pytest.mark.slow),
  ],
)
def test_a_job_goes_on_until_it_is_complete(job, tasks, later_tasks):
  """Also with another number of machines."""
  code, step, requeued, err = job(0, tasks)
  assert code == 143, err
  assert 2 <= step < 100
  assert requeued == ["requeue", str(os.getpid())]
  code, step, requeued_again, err = job(1, later_tasks)
  assert (code, step, requeued_again) == (0, 100, requeued), err
