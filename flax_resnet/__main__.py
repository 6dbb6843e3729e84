"""python -m flax_resnet VERB: what is done around a training run."""

import sys

from flax_resnet import command


def main() -> None:
  """Runs one verb."""
  parser = command.Parser(prog="python -m flax_resnet", description=__doc__)
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  prepare = verbs.add_parser(
    "prepare",
    help="download a TFDS data set and store it as array_record",
    description="Downloads a TFDS data set and stores it as array_record, "
    "which training can read by index. Needs TensorFlow: pip install "
    "'flax_resnet[prepare]'.",
  )
  prepare.add_argument("name", help="of the set: cifar10, imagenet2012, ...")
  prepare.add_argument(
    "--data-dir", metavar="DIR", help="where to; TFDS's own default otherwise"
  )
  with command.exits():
    flags = parser.parse_args()
    from flax_resnet.data import preparation
    from flax_resnet.training.schema import wrong_input

    with wrong_input(f"prepare {flags.name}"):
      print(preparation.prepare(flags.name, flags.data_dir))


if __name__ == "__main__":
  sys.exit(main())
