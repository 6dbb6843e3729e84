"""The digits from the command to the end: train.py and plain PyTorch in turn.

    pip install torch
    python benchmarks/cold_start.py

Whole processes, `train.py` with an empty compilation cache and with a full one,
and `torch_digits.py`, which trains the same network on the same digits for as
many steps.
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


def seconds(arguments: list[str], **environment: str) -> tuple[float, str]:
  """Returns how long a command took, and its last line."""
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return time.perf_counter() - start, done.stdout.strip().splitlines()[-1]


def ours(workdir: str, cache: str) -> tuple[float, str]:
  return seconds(
    ["train.py", "--config", "configs/digits.py", "--workdir", workdir],
    JAX_COMPILATION_CACHE_DIR=cache,
    # As `cli.flags.enable_compilation_cache` sets it.
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3)
  rounds = parser.parse_args().rounds
  print(versions())
  taken: dict[str, list[float]] = {"cold": [], "warm": [], "PyTorch": []}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      for name in ("cold", "warm"):
        time_taken, line = ours(f"{folder}/{name}", f"{folder}/cache")
        taken[name].append(time_taken)
        print(f"{name}: {time_taken:.1f} s, {line}", flush=True)
    time_taken, line = seconds(["benchmarks/torch_digits.py"])
    taken["PyTorch"].append(time_taken)
    print(f"PyTorch: {time_taken:.1f} s, {line}", flush=True)
  for name, times in taken.items():
    ratios = [a / b for a, b in zip(times, taken["PyTorch"], strict=True)]
    print(
      f"{name:8} {statistics.median(times):5.1f} s "
      f"({min(times):.1f} to {max(times):.1f})  "
      f"{statistics.median(ratios):.2f} of PyTorch's time"
    )


if __name__ == "__main__":
  main()
