"""Trains a residual network: python train.py --config configs/digits.py."""

import pathlib

from etils import epy

from flax_resnet import training
from flax_resnet.cli.flags import (
  enable_compilation_cache,
  exit_codes,
  Parser,
  path,
)
from flax_resnet.errors import reported_as

with epy.lazy_imports():  # It imports JAX: "--help" needs none.
  from flax_resnet import sharding


def main() -> None:
  parser = Parser(description=__doc__, allow_abbrev=False)
  parser.add_argument(
    "--config",
    type=path,
    required=True,
    metavar="FILE",
    help="the recipe; --config.optim.learning_rate=0.05 changes a key of it",
  )
  parser.add_argument(
    "--workdir",
    type=path,
    metavar="DIR",
    help="where the run lives, and continues if it is there: runs/<name of "
    "the config> by default",
  )
  hosts = parser.add_argument_group(
    "hosts", "found by themselves on TPU pods, under SLURM and Open MPI"
  )
  hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  hosts.add_argument("--num_processes", type=int, metavar="N")
  hosts.add_argument("--process_id", type=int, metavar="I", help="from 0")
  with exit_codes():
    args = parser.parse_with_overrides()
    with reported_as("hosts"):
      sharding.join_hosts(args.coordinator, args.num_processes, args.process_id)
    enable_compilation_cache()
    config = training.load_recipe(args.config, args.overrides)
    workdir = args.workdir or pathlib.Path("runs", args.config.stem)
    training.train(config, workdir)


if __name__ == "__main__":
  main()
