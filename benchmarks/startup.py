"""From the command to the first step, and what importing costs.

    python benchmarks/startup.py

`train.py` on the digits, whose first step is logged: with an empty compilation
cache, then with what that run left in it. Then a ResNet-50 of random numbers,
from a .safetensors file on a warm disk to the logits of one image, against timm
and PyTorch, with the ratio (torch and timm have to be installed); what of it is
reading, renaming and checking; and the lists of names and tags. Each line is
the median of several runs in processes of their own.
"""

import argparse
from collections.abc import Callable
import importlib.util
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
# From the start of a process to the logits of one image.
OURS = """
import functools, sys
import jax, jax.numpy as jnp
import flax_resnet as fr
model, variables = fr.from_pretrained(sys.argv[1])
apply = jax.jit(functools.partial(model.apply, train=False))
apply(variables, jnp.zeros((1, 224, 224, 3))).block_until_ready()
"""
THEIRS = """
import sys
from tests.weights.torch_models import load_torchvision
load_torchvision()
import timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
with torch.no_grad():
  model(torch.zeros(1, 3, 224, 224))
"""
WRITE = """
import sys
import jax
import flax_resnet as fr
from flax_resnet.models.variables import initial_variables
model = fr.create_model("resnet50")
variables = initial_variables(model, jax.random.key(0), (224, 224, 3))
fr.save_pretrained(sys.argv[1], model, variables)
"""
# They print their own seconds, without the imports.
READ = """
import sys, time
import jax
import flax_resnet as fr
from flax_resnet.weights import files, state_dict
model = fr.create_model("resnet50")
start = time.perf_counter()
tensors = files.read(f"{sys.argv[1]}/model.safetensors")
jax.block_until_ready(state_dict.fit(tensors, model))
print("took", time.perf_counter() - start)
"""
LISTS = """
import sys, time
import flax_resnet as fr
fr.list_models
start = time.perf_counter()
fr.list_models(pretrained=sys.argv[1] == "tags")
print("took", time.perf_counter() - start)
"""


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


def printed(code: str, *arguments: str) -> float:
  """Returns the seconds that a program prints."""
  output = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  return float(output.split("took ")[1])


def to_first_logits(show: Callable, rounds: range) -> None:
  """Shows how long a ResNet-50 in a file takes to give logits."""
  with tempfile.TemporaryDirectory() as folder:
    weights = f"{folder}/resnet50"
    seconds(["-c", WRITE, weights])
    environment = {
      "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    show(
      "first logits of resnet50, nothing compiled",
      [seconds(["-c", OURS, weights], **environment)],
    )
    ours, theirs = [], []
    for _ in rounds:  # In turn: the machine may be busy for a while.
      ours.append(seconds(["-c", OURS, weights], **environment))
      if importlib.util.find_spec("timm"):
        theirs.append(seconds(["-c", THEIRS, weights]))
    show("first logits of resnet50, all in the cache", ours)
    if theirs:
      show("the same with timm and PyTorch", theirs)
      ratio = statistics.median(ours) / statistics.median(theirs)
      print(f"ratio, ours over theirs {ratio:21.2f}")
    show(
      "of it, reading, renaming and checking",
      [printed(READ, weights) for _ in rounds],
    )


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
      f"{what:43} {statistics.median(times):6.3g} s "
      f"({min(times):.2g} to {max(times):.2g})",
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
  to_first_logits(show, rounds)
  for what in ("models", "tags"):
    show(f"the list of {what}", [printed(LISTS, what) for _ in rounds])


if __name__ == "__main__":
  main()
