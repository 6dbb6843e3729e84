"""Download a TFDS data set and store it as array_record.

Training can read it by index then. Needs TensorFlow:
pip install 'flax_resnet[prepare]'.
"""

import argparse

from etils import epy

from flax_resnet.cli import flags
from flax_resnet.errors import reported_as

with epy.lazy_imports():
  from flax_resnet.data import tfds


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("name", help="data set: cifar10, imagenet2012, ...")
  parser.add_argument(
    "--data-dir",
    type=flags.local,
    metavar="DIR",
    help="where to; TFDS's own default otherwise",
  )
  parser.add_argument(
    "--manual-dir",
    type=flags.local,
    metavar="DIR",
    help="where archives are already, as those of imagenet2012 have to be; "
    "downloads/manual in --data-dir otherwise",
  )


def run(args: argparse.Namespace) -> None:
  """Writes the data set and prints where it is."""
  with reported_as(f"prepare {args.name}"):
    print(tfds.prepare(args.name, args.data_dir, args.manual_dir))
