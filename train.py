"""Trains a residual network: python train.py --config configs/digits.py."""

import pathlib

from flax_resnet import command
from flax_resnet.training.schema import wrong_input


def main() -> None:
  parser = command.Parser(description=__doc__, allow_abbrev=False)
  parser.add_argument(
    "--config",
    type=pathlib.Path,
    required=True,
    metavar="FILE",
    help="the recipe; --config.optim.learning_rate=0.05 changes a key of it",
  )
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
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
  with command.exits():
    flags, overrides = parser.parse_with_overrides()
    workdir = flags.workdir or pathlib.Path("runs") / flags.config.stem

    from flax_resnet import sharding, training

    with wrong_input("hosts"):
      sharding.join_hosts(
        flags.coordinator, flags.num_processes, flags.process_id
      )
    command.keep_what_is_compiled()
    training.train(training.load_recipe(flags.config, overrides), workdir)


if __name__ == "__main__":
  main()
