"""Predict the classes of images with a trained network.

Images are files, folders (with all below) and patterns such as 'photos/*.jpg'.
The network is that of a run, a weight file, a Flax checkpoint or a repository
of the hub. A run and the hub say what they expect of an image; for a weight
file it is ImageNet's: the short side resized to 256 pixels, the central 224.
"""

import argparse

from flax_resnet.training.schema import InputError, wrong_input
from flax_resnet.verbs import network


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("images", nargs="+", metavar="IMAGE")
  network.add_arguments(parser)
  parser.add_argument(
    "--top", type=int, default=5, metavar="N", help="classes an image (5)"
  )
  parser.add_argument(
    "--batch-size", type=int, default=32, metavar="N", help="at a time (32)"
  )
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prints the most probable classes of every image."""
  del overrides
  from flax_resnet.command import printable
  from flax_resnet.predictor import find_images
  from flax_resnet.training.workdir import to_json

  for flag in ("top", "batch_size"):
    if getattr(flags, flag) < 1:
      raise InputError(
        f"--{flag.replace('_', '-')} is {getattr(flags, flag)}: use 1 or more"
      )
  with wrong_input("predict"):
    paths = find_images(flags.images)
  predictor = network.predictor_of(flags)
  with wrong_input("predict"):
    found = predictor.predict(paths, flags.batch_size)
    for path, probabilities in zip(paths, found, strict=True):
      best = probabilities.argsort()[::-1][: flags.top]
      rows = [
        {
          "label": int(label),
          "class": predictor.class_names[label],
          "probability": float(probabilities[label]),
        }
        for label in best
      ]
      if flags.json:
        print(to_json({"image": str(path), "classes": rows}), flush=True)
        continue
      print(printable(str(path)))
      for row in rows:
        name = printable(row["class"])
        print(f"  {row['probability']:8.2%}  {name}", flush=True)
