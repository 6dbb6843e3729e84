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

from flax_resnet.training.schema import InputError, wrong_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    nargs="+",
    metavar="DIR",
    help="of a run, or of several that are compared",
  )
  parser.add_argument(
    "--model", nargs="+", metavar="NAME", help="of networks; needs --init"
  )
  parser.add_argument(
    "--init", action="store_true", help="the networks as they are drawn"
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    metavar="DIR",
    help="where to write; by default the workdir, or runs/untrained, or "
    "runs/compared",
  )
  parser.add_argument(
    "--images", type=int, default=128, metavar="N", help="to look at (128)"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of untrained networks (0)"
  )


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prints what several runs came to, and which files were written."""
  del overrides
  if (flags.workdir is None) == (flags.model is None):
    raise InputError("give either --workdir or --model NAME --init")
  if flags.model is not None and not flags.init:
    raise InputError("--model needs --init: a trained network has a --workdir")
  if flags.model is None and flags.init:
    raise InputError("--init is for --model: a --workdir is measured trained")
  if flags.images < 1:
    raise InputError(f"--images is {flags.images}: use 1 or more")

  from flax_resnet.insight import comparison, study

  out = flags.out or pathlib.Path(
    "runs/untrained" if flags.model else "runs/compared"
  )
  if flags.model:
    with wrong_input("--model"):
      files = study.study_untrained(flags.model, out, flags.images, flags.seed)
  elif len(flags.workdir) > 1:
    rows, files = comparison.compare_runs(flags.workdir, out, flags.images)
    print(comparison.table(rows), end="\n\n")
  elif flags.out is not None:
    raise InputError("--out is for several runs: what one has stays in it")
  else:
    (workdir,) = flags.workdir
    files = study.study_run(workdir, flags.images)
  print(*files, sep="\n")
