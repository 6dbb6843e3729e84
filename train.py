"""Trains a residual network: python train.py --config configs/digits.py.

The same as python -m flax_resnet train.
"""

from flax_resnet.cli import train
from flax_resnet.cli.flags import exit_codes, Parser


def main() -> None:
  parser = Parser(description=__doc__, allow_abbrev=False)
  train.add_arguments(parser)
  with exit_codes():
    train.run(parser.parse_with_overrides())


if __name__ == "__main__":
  main()
