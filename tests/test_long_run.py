"""A long run needs no more memory, files or time a step than a short one.

`pytest -m slow tests/test_long_run.py -s` prints what it has measured.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.recipes import ROOT, write_tiny


@pytest.fixture
def recipe(tmp_path, data_dir):
  """The tiny net on digits; it logs, evaluates and saves now and then."""
  return write_tiny(
    tmp_path, data_dir, log_every=20, eval_every=500, checkpoint_every=250
  )


def watch(process, workdir, samples):
  """Notes memory and open files at each new row, until the process ends."""
  path, seen = workdir / "metrics.jsonl", 0
  folder = pathlib.Path("/proc", str(process.pid))
  while process.poll() is None:
    size = path.stat().st_size if path.exists() else 0
    if size != seen:
      seen = size
      step = json.loads(path.read_text().splitlines()[-1])["step"]
      pages = int((folder / "statm").read_text().split()[1])
      files = len(list((folder / "fd").iterdir()))
      samples.append((step, pages * os.sysconf("SC_PAGE_SIZE"), files))
    time.sleep(0.02)


def between(samples, low, high, index):
  """Returns the mean of what was noted in these steps."""
  found = [sample[index] for sample in samples if low <= sample[0] <= high]
  return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("steps_per_call", [20, 1])
def test_a_long_run_stays_as_it_is(recipe, tmp_path, steps_per_call):
  num_steps = 20_000
  process = subprocess.Popen(
    [
      *(sys.executable, ROOT / "train.py", f"--config={recipe}"),
      *(f"--workdir={tmp_path / 'run'}", f"--config.num_steps={num_steps}"),
      f"--config.steps_per_call={steps_per_call}",
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    stdout=subprocess.DEVNULL,
  )
  samples = []
  watch(process, tmp_path / "run", samples)
  assert process.returncode == 0
  memory, later = (
    between(samples, low, high, 1)
    for low, high in ((2_000, 4_000), (18_000, 20_000))
  )
  files = {sample[2] for sample in samples if sample[0] >= 2_000}
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  pace = [row["images_per_second"] for row in rows]
  tenth = len(pace) // 10
  early, late = (
    sorted(part)[tenth // 2]
    for part in (pace[tenth : 2 * tenth], pace[-tenth:])
  )
  print(
    f"\nsteps_per_call={steps_per_call}: memory {memory / 1e6:.1f} -> "
    f"{later / 1e6:.1f} MB ({later / memory - 1:+.2%}), open files "
    f"{min(files)} to {max(files)}, images/s {early:.0f} -> {late:.0f} (median)"
  )
  assert [row["step"] for row in rows] == list(range(20, num_steps + 1, 20))
  assert later < 1.01 * memory
  assert max(files) - min(files) < 20
  # Others may use the machine as well.
  assert late > 0.5 * early
