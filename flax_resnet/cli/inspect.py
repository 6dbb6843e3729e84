"""Measure and draw what skip connections do in a network.

Of a run: how large the gradient is at each block, and how much of it the skips
alone bring back; how large F(x) is beside x; how strongly layers respond; what
is taken for what. The first three before training and after. Of several runs:
the first three, and their errors by step, beside each other. Of untrained
networks: the gradients, beside those of the same network without skips, with
BatchNorm and without.

The numbers are written to inspect.json, the pictures beside it as PNG and SVG.
"""

import argparse
import pathlib

from etils import epy

from flax_resnet import bucket
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet.insight import comparison, study


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    type=flags.place,
    nargs="+",
    metavar="DIR|URL",
    help="folder of a run, or of several that are compared",
  )
  parser.add_argument(
    "--model", nargs="+", metavar="NAME", help="networks; needs --init"
  )
  parser.add_argument(
    "--init", action="store_true", help="the networks as they are drawn"
  )
  parser.add_argument(
    "--out",
    type=flags.path,
    metavar="DIR",
    help="where to write; by default the workdir, or runs/untrained, or "
    "runs/compared",
  )
  parser.add_argument(
    "--images", type=int, default=128, metavar="N", help="images to use (128)"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="seed of untrained networks (0)"
  )


def run(args: argparse.Namespace) -> None:
  """Prints what several runs came to, and which files were written."""
  _check(args)
  with reported_as("inspect"):
    if args.model:
      out = args.out or pathlib.Path("runs/untrained")
      files = study.study_untrained(args.model, out, args.images, args.seed)
    elif len(args.workdir) > 1:
      out = args.out or pathlib.Path("runs/compared")
      workdirs = [flags.local_run(workdir) for workdir in args.workdir]
      rows, files = comparison.compare_runs(workdirs, out, args.images)
      print(comparison.table(rows), end="\n\n")
    else:
      (workdir,) = args.workdir
      files = study.study_run(flags.local_run(workdir), args.images)
      if bucket.is_url(workdir):  # What is written into a workdir stays there.
        bucket.copy_up(files)
  for file in files:
    print(bucket.shown(str(file)))


def _check(args: argparse.Namespace) -> None:
  """Raises InputError for flags that do not go together."""
  if (args.workdir is None) == (args.model is None):
    raise InputError("give either --workdir or --model NAME --init")
  if args.model and not args.init:
    raise InputError("--model needs --init: a trained network has a --workdir")
  if args.workdir and args.init:
    raise InputError("--init is for --model: a --workdir is measured trained")
  if args.workdir and len(args.workdir) == 1 and args.out is not None:
    raise InputError("--out is for several runs: what one has stays in it")
  flags.check_is_positive("--images", args.images)
