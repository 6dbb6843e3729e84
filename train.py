"""Trains a residual network: python train.py --config configs/digits.py."""

import pathlib

from flax_resnet import command


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
  with command.exits():
    flags, overrides = parser.parse_with_overrides()
    workdir = flags.workdir or pathlib.Path("runs") / flags.config.stem

    from flax_resnet import training

    command.keep_what_is_compiled()
    training.train(training.load_recipe(flags.config, overrides), workdir)


if __name__ == "__main__":
  main()
