"""Download a TFDS data set and store it as array_record.

Training can read it by index then. Needs TensorFlow:
pip install 'flax_resnet[prepare]'.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("name", help="of the set: cifar10, imagenet2012, ...")
  parser.add_argument(
    "--data-dir", metavar="DIR", help="where to; TFDS's own default otherwise"
  )
  parser.add_argument(
    "--manual-dir",
    metavar="DIR",
    help="where archives are already, as those of imagenet2012 have to be; "
    "downloads/manual in --data-dir otherwise",
  )


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prepares the set and prints where it is."""
  del overrides
  from flax_resnet.data import preparation
  from flax_resnet.training.schema import wrong_input

  with wrong_input(f"prepare {flags.name}"):
    print(preparation.prepare(flags.name, flags.data_dir, flags.manual_dir))
