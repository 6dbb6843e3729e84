"""Predict the classes of images with a trained network.

Images are files, folders (with all below) and patterns such as 'photos/*.jpg'.
The network is that of a run, a published tag, a weight file, a Flax checkpoint
or a repository of the hub. A run and the hub say what they expect of an image;
for a weight file it is ImageNet's: the short side resized to 256 pixels, the
central 224.

With --threshold P the classes of an image are all of the probability P and
more. The network of a run on images with several labels gives each class a
probability of its own, and its threshold is 0.5 unless --top or --threshold is
given.
With --cam, the folder OUT gets a picture of each image with what speaks for its
most probable class in colors over it (Grad-CAM).

Images that cannot be read are passed over, and named at the end; the exit code
is 2 then.
"""

import argparse
import dataclasses
import pathlib

from etils import epy

from flax_resnet import storage
from flax_resnet.cli import flags
from flax_resnet.errors import ImageError, InputError, listing, reported_as

with epy.lazy_imports():
  from PIL import Image

  from flax_resnet import predictor as predictors
  from flax_resnet.insight import grad_cam


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("images", nargs="+", type=flags.local, metavar="IMAGE")
  flags.add_network_arguments(parser)
  parser.add_argument(
    "--top", type=int, metavar="N", help="classes an image (5)"
  )
  parser.add_argument(
    "--threshold",
    type=float,
    metavar="P",
    help="least probability of a class, 0 to 1",
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
  parser.add_argument(
    "--cam",
    type=flags.path,
    metavar="OUT",
    help="new folder for pictures of where the network looks",
  )
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: argparse.Namespace) -> None:
  """Prints the most probable classes of every image.

  Raises:
    InputError: at the end, if files could not be read.
  """
  if args.top is not None:
    flags.check_is_positive("--top", args.top)
  if args.threshold is not None and not 0 <= args.threshold <= 1:
    raise InputError(f"--threshold is {args.threshold}: use 0 to 1")
  flags.check_is_positive("--batch-size", args.batch_size)
  if args.max_pixels is not None:
    flags.check_is_positive("--max-pixels", args.max_pixels)
  if args.cam:
    flags.check_is_new(args.cam)
  with reported_as("predict"):
    paths = predictors.find_images(args.images)
  predictor = flags.load_predictor(args)
  if args.max_pixels is not None:
    predictor = dataclasses.replace(predictor, max_pixels=args.max_pixels)
  top, threshold = args.top, args.threshold
  if top is None and threshold is None:
    top, threshold = (None, 0.5) if predictor.multi_label else (5, None)
  problems, names = [], _Names()
  with reported_as("predict"):
    given = (paths, args.batch_size)
    with_cams = bool(args.cam)
    each = (
      grad_cam.explain_each(predictor, *given)
      if with_cams
      else predictor.predict_each(*given)
    )
    for path, found in zip(paths, each, strict=True):
      if isinstance(found, ImageError):
        problem = str(found)
        problems.append(problem)
        row = storage.to_json({"image": str(path), "error": problem})
        print(row if args.json else flags.printable(problem), flush=True)
        continue
      if not isinstance(found, grad_cam.Explanation):
        cam, probabilities = {}, found
      else:
        cam = {"cam": str(args.cam / names.of(path))}
        args.cam.mkdir(exist_ok=True)  # Now that there is a picture.
        picture = grad_cam.overlay(found.pixels, found.cam)
        Image.fromarray(picture).save(cam["cam"])
        probabilities = found.probabilities
      classes = [
        {
          "label": int(label),
          "class": predictor.class_names[label],
          "probability": float(probabilities[label]),
        }
        for label in probabilities.argsort()[::-1][:top]
        if threshold is None or probabilities[label] >= threshold
      ]
      if args.json:
        row = {"image": str(path), "classes": classes, **cam}
        print(storage.to_json(row), flush=True)
        continue
      print(flags.printable(str(path)))
      if not classes:
        print(f"  none of {threshold:.2%} or more", flush=True)
      for row in classes:
        name = flags.printable(row["class"])
        print(f"  {row['probability']:8.2%}  {name}", flush=True)
      if cam:
        print(f"  Grad-CAM: {flags.printable(cam['cam'])}", flush=True)
  if problems:
    counted = f"{len(problems):,} of {len(paths):,} images cannot be read: "
    raise InputError(
      f"predict: {counted if len(paths) > 1 else ''}{listing(problems)}"
    )


class _Names:
  """Names of pictures, each once, whatever folders the images are in."""

  def __init__(self):
    self._taken = set()

  def of(self, path: pathlib.Path) -> str:
    """Returns "cat.png" for the first image called cat, "cat-2.png", ..."""
    name, number = f"{path.stem}.png", 1
    while name.casefold() in self._taken:  # As some disks compare names.
      number += 1
      name = f"{path.stem}-{number}.png"
    self._taken.add(name.casefold())
    return name
