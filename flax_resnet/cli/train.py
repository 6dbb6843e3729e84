"""Train a network by a recipe, or continue a run.

A recipe is the name of one of this package (digits, imagenet_resnet50, ...), a
Python file, or the workdir of a run, for its config. --config.x.y=... changes a
key of it: --config.optim.learning_rate=0.05.
"""

import argparse
import pathlib
import statistics

from etils import epy

from flax_resnet import recipes, training
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():  # "--help" needs no JAX.
  import jax

  from flax_resnet import hosts


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--config",
    type=flags.path,
    required=True,
    metavar="NAME|FILE|DIR",
    help="the recipe",
  )
  parser.add_argument(
    "--workdir",
    type=flags.place,
    metavar="DIR|URL",
    help="folder of the run, which continues if it is there; "
    "runs/<name of the recipe> by default",
  )
  parser.add_argument(
    "--seeds",
    type=_seeds,
    metavar="0,1,2",
    help="a run of each seed, one after the other, in the folders seed0, ... "
    "of the workdir",
  )
  group = parser.add_argument_group(
    "hosts", "found by themselves on TPU pods, under SLURM and Open MPI"
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  group.add_argument("--num_processes", type=int, metavar="N")
  group.add_argument("--process_id", type=int, metavar="I", help="from 0")


def _seeds(text: str) -> list[int]:
  try:
    seeds = [int(seed) for seed in text.split(",")]
  except ValueError:
    raise InputError(
      f"--seeds is {text!r}: give numbers, such as 0,1,2"
    ) from None
  if len(set(seeds)) < len(seeds):
    raise InputError(f"--seeds is {text!r}: give each seed once")
  return seeds


def run(args: argparse.Namespace) -> None:
  """Trains to the end of the recipe, or of that of each seed."""
  with reported_as("hosts"):
    hosts.join_hosts(
      flags.print_error, args.coordinator, args.num_processes, args.process_id
    )
  flags.enable_compilation_cache()
  recipe = recipes.find_recipe(args.config)
  is_run = recipe.name == "config.json"
  default = recipe.parent if is_run else pathlib.Path("runs", recipe.stem)
  workdir = args.workdir or default
  if args.seeds is None:
    training.train(recipes.load_recipe(recipe, args.overrides), workdir)
    return
  # All that is wrong with one is known before the first begins.
  configs = {
    seed: recipes.load_recipe(recipe, [*args.overrides, f"seed={seed}"])
    for seed in args.seeds
  }
  results = []
  for seed, config in configs.items():
    results.append(training.train(config, workdir / f"seed{seed}").summary)
  if jax.process_index() == 0:
    name = "map" if "val/map" in results[0] else "top1"
    print(f"{name} {_spread([result[f'val/{name}'] for result in results])}")


def _spread(shares: list[float]) -> str:
  """Returns mean and standard deviation (of a sample) of several runs."""
  each = ", ".join(f"{share:.2%}" for share in shares)
  spread = f" +- {statistics.stdev(shares):.2%}" if len(shares) > 1 else ""
  return f"{statistics.mean(shares):.2%}{spread} of {len(shares)} runs: {each}"
