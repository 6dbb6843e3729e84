"""From the command to the first step, and what importing costs.

    python benchmarks/startup.py

`train.py` on the digits, whose first step is logged: with an empty compilation
cache, then with what that run left in it. Each line is the median of several
runs in processes of their own.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from train_step import versions

ROOT = pathlib.Path(__file__).parents[1]
IMPORTS = ("import jax, flax.linen", "import flax_resnet")
TRAIN = [
  *("train.py", "--config", "configs/digits.py"),
  *("--config.log_every=1", "--config.num_steps=2"),
]


def seconds(arguments: list[str], until: str = "", **environment: str) -> float:
  """Returns the time to the first line that starts so, or to the end."""
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout
  found = None
  for line in process.stdout:
    if until and found is None and line.startswith(until):
      found = time.perf_counter() - start
  if process.wait():
    raise SystemExit(f"{' '.join(arguments)} failed")
  return time.perf_counter() - start if found is None else found


def to_first_step(cache: str) -> float:
  with tempfile.TemporaryDirectory() as workdir:
    return seconds(
      [*TRAIN, "--workdir", workdir],
      until="step 1/2",
      PYTHONUNBUFFERED="1",
      JAX_COMPILATION_CACHE_DIR=cache,
      # As `cli.flags.enable_compilation_cache` sets it.
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=5)
  rounds = range(parser.parse_args().rounds)
  print(versions())

  def show(what: str, times: list[float]) -> None:
    print(
      f"{what:40} {statistics.median(times):5.1f} s "
      f"({min(times):.1f} to {max(times):.1f})",
      flush=True,
    )

  for line in IMPORTS:
    show(line, [seconds(["-c", line]) for _ in rounds])
  show("train.py --help", [seconds(["train.py", "--help"]) for _ in rounds])
  cold, warm = [], []
  for _ in rounds:
    with tempfile.TemporaryDirectory() as cache:
      cold.append(to_first_step(cache))
      warm.append(to_first_step(cache))
  show("first step of digits, nothing compiled", cold)
  show("first step of digits, all in the cache", warm)


if __name__ == "__main__":
  main()
