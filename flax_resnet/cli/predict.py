"""Predict the classes of images with a trained network.

Images are files, folders (with all below) and patterns such as 'photos/*.jpg'.
The network is that of a run, a published tag, a weight file, a Flax checkpoint
or a repository of the hub. A run and the hub say what they expect of an image;
for a weight file it is ImageNet's: the short side resized to 256 pixels, the
central 224.

Images that cannot be read are passed over, and named at the end; the exit code
is 2 then.
"""

import argparse
import dataclasses

from etils import epy

from flax_resnet import storage
from flax_resnet.cli import flags
from flax_resnet.errors import ImageError, InputError, listing, reported_as

with epy.lazy_imports():
  from flax_resnet import predictor as predictors


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("images", nargs="+", type=flags.local, metavar="IMAGE")
  flags.add_network_arguments(parser)
  parser.add_argument(
    "--top", type=int, default=5, metavar="N", help="classes an image (5)"
  )
  parser.add_argument(
    "--batch-size", type=int, default=32, metavar="N", help="at a time (32)"
  )
  parser.add_argument(
    "--max-pixels",
    type=int,
    metavar="N",
    help="pixels of the largest image that is read (89478485)",
  )
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: argparse.Namespace) -> None:
  """Prints the most probable classes of every image.

  Raises:
    InputError: at the end, if files could not be read.
  """
  flags.check_is_positive("--top", args.top)
  flags.check_is_positive("--batch-size", args.batch_size)
  if args.max_pixels is not None:
    flags.check_is_positive("--max-pixels", args.max_pixels)
  with reported_as("predict"):
    paths = predictors.find_images(args.images)
  predictor = flags.load_predictor(args)
  if args.max_pixels is not None:
    predictor = dataclasses.replace(predictor, max_pixels=args.max_pixels)
  problems = []
  with reported_as("predict"):
    each = predictor.predict_each(paths, args.batch_size)
    for path, probabilities in zip(paths, each, strict=True):
      if isinstance(probabilities, ImageError):
        problem = str(probabilities)
        problems.append(problem)
        row = storage.to_json({"image": str(path), "error": problem})
        print(row if args.json else flags.printable(problem), flush=True)
        continue
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
  if problems:
    counted = f"{len(problems):,} of {len(paths):,} images cannot be read: "
    raise InputError(
      f"predict: {counted if len(paths) > 1 else ''}{listing(problems)}"
    )
