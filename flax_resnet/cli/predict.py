"""Predict the classes of images with a trained network.

Images are files, folders (with all below) and patterns such as 'photos/*.jpg'.
The network is that of a run, a weight file, a Flax checkpoint or a repository
of the hub. A run and the hub say what they expect of an image; for a weight
file it is ImageNet's: the short side resized to 256 pixels, the central 224.
"""

import argparse

from etils import epy

from flax_resnet import storage
from flax_resnet.cli import flags
from flax_resnet.errors import reported_as

with epy.lazy_imports():
  from flax_resnet import predictor as predictors


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("images", nargs="+", metavar="IMAGE")
  flags.add_network_arguments(parser)
  parser.add_argument(
    "--top", type=int, default=5, metavar="N", help="classes an image (5)"
  )
  parser.add_argument(
    "--batch-size", type=int, default=32, metavar="N", help="at a time (32)"
  )
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: argparse.Namespace) -> None:
  """Prints the most probable classes of every image."""
  flags.check_is_positive("--top", args.top)
  flags.check_is_positive("--batch-size", args.batch_size)
  with reported_as("predict"):
    paths = predictors.find_images(args.images)
  predictor = flags.load_predictor(args)
  with reported_as("predict"):
    each = predictor.predict(paths, args.batch_size)
    for path, probabilities in zip(paths, each, strict=True):
      classes = [
        {
          "label": int(label),
          "class": predictor.class_names[label],
          "probability": float(probabilities[label]),
        }
        for label in probabilities.argsort()[::-1][: args.top]
      ]
      if args.json:
        row = {"image": str(path), "classes": classes}
        print(storage.to_json(row), flush=True)
        continue
      print(flags.printable(str(path)))
      for row in classes:
        name = flags.printable(row["class"])
        print(f"  {row['probability']:8.2%}  {name}", flush=True)
