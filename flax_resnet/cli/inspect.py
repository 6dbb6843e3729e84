"""Measure and draw what skip connections do in a network.

Of a run: how large the gradient is at each block, and how much of it the skips
alone bring back; how large F(x) is beside x; how strongly layers respond; what
is taken for what. The first three before training and after. Of several runs:
the first three, and their errors by step, beside each other. Of untrained
networks: the gradients, beside those of the same network without skips, with
BatchNorm and without.

The numbers are written to inspect.json, the pictures beside it as PNG and SVG.

--study NAME is an experiment on trained networks, those of runs and weights
beside each other, on images evenly taken from the evaluation split:

lesions     the accuracy without some of the blocks, or with blocks swapped
surface     the loss on a plane around the parameters: 21 by 21 points
shattering  how alike gradients are along a line from one image to another
paths       how much of the gradient comes through so many of the blocks
residuals   how large F(x) is beside x, through a run's kept checkpoints

--config.x.y=… changes a key, as --config.data.eval_split=train. The numbers are
written to NAME.json, the picture beside it.
"""

import argparse
from collections.abc import Iterator
import pathlib
from typing import Any

from etils import epy

from flax_resnet import bucket
from flax_resnet.cli import evaluate, flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  import jax.numpy as jnp
  import numpy as np

  from flax_resnet.data import sources
  from flax_resnet.insight import comparison, experiments, study

# As `insight.experiments` has them, which is slow to import.
STUDIES = ("lesions", "surface", "shattering", "paths", "residuals")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    type=flags.place,
    nargs="+",
    metavar="DIR|URL",
    help="folder of a run, or of several that are compared",
  )
  parser.add_argument(
    "--model",
    nargs="+",
    metavar="NAME",
    help="networks; needs --init, or says of which network --weights are",
  )
  parser.add_argument(
    "--init", action="store_true", help="the networks as they are drawn"
  )
  parser.add_argument(
    "--out",
    type=flags.path,
    metavar="DIR",
    help="where to write; by default the workdir, or runs/untrained, or "
    "runs/compared, or runs/NAME of a --study",
  )
  parser.add_argument(
    "--images",
    type=int,
    metavar="N",
    help="images to use (128; with --study lesions 1000, surface 500, "
    "shattering 64)",
  )
  parser.add_argument(
    "--seed",
    type=int,
    default=0,
    help="seed of untrained networks, and of what a --study draws (0)",
  )
  parser.add_argument(
    "--study", choices=STUDIES, metavar="NAME", help=", ".join(STUDIES)
  )
  parser.add_argument(
    "--weights",
    type=flags.place_or_name,
    nargs="+",
    default=[],
    metavar="FILE|TAG",
    help="with --study: trained networks without a run; needs --config",
  )
  parser.add_argument(
    "--config",
    type=flags.path,
    metavar="FILE",
    help="recipe with the data for --weights",
  )
  # What a network that is evaluated has besides.
  parser.set_defaults(
    checkpoint="newest", ema=True, image_size=None, crop_fraction=None
  )


def run(args: argparse.Namespace) -> None:
  """Prints what several runs came to, and which files were written."""
  _check(args)
  if args.study:
    _run_study(args)
    return
  args.images = args.images or 128
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
  if args.images is not None:
    flags.check_is_positive("--images", args.images)
  if args.study:
    _check_study(args)
    return
  for flag in ("weights", "config"):
    if getattr(args, flag):
      raise InputError(f"--{flag} needs --study: use {', '.join(STUDIES)}")
  if args.overrides:
    raise InputError(f"--config.{args.overrides[0]} needs --study")
  if (args.workdir is None) == (args.model is None):
    raise InputError("give either --workdir or --model NAME --init")
  if args.model and not args.init:
    raise InputError("--model needs --init: a trained network has a --workdir")
  if args.workdir and args.init:
    raise InputError("--init is for --model: a --workdir is measured trained")
  if args.workdir and len(args.workdir) == 1 and args.out is not None:
    raise InputError("--out is for several runs: what one has stays in it")


def _check_study(args: argparse.Namespace) -> None:
  if not args.workdir and not args.weights:
    raise InputError("--study needs --workdir or --weights, or both")
  if args.init:
    raise InputError("--init is for --model: a --study is of trained networks")
  if args.weights and args.config is None:
    raise InputError("--weights needs --config for the data")
  if args.config is not None and not args.weights:
    raise InputError("--config is that of --weights: a run says its own")
  if args.model and (not args.weights or len(args.model) > 1):
    raise InputError("--model with --study is the one network of --weights")


def _run_study(args: argparse.Namespace) -> None:
  """Prints a sentence on each network, and which files were written."""
  number = args.images or experiments.EXPERIMENTS[args.study].images
  ones = list(_networks(args))
  configs = [evaluate.config_of(one) for one in ones]
  subjects = [
    _subject(one, config, number)
    for one, config in zip(ones, configs, strict=True)
  ]
  data = configs[0]["data"]
  with reported_as("inspect"):
    sentences, files = experiments.run_experiment(
      args.study,
      subjects,
      args.out or pathlib.Path("runs", args.study),
      args.seed,
      f"{data['name']} {data['eval_split']}",
    )
  for line in [*sentences, *map(str, files)]:
    print(flags.printable(line))


def _networks(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
  """Yields the flags of each network."""
  for workdir in args.workdir or ():
    only = {"workdir": workdir, "weights": None, "model": None, "config": None}
    yield argparse.Namespace(**{**vars(args), **only})
  for weights in args.weights:
    model = args.model[0] if args.model else None
    only = {"workdir": None, "weights": weights, "model": model}
    yield argparse.Namespace(**{**vars(args), **only})


def _subject(
  args: argparse.Namespace, config: dict[str, Any], number: int
) -> "experiments.Subject":
  """Returns a network with images, evenly taken from the evaluation split."""
  task = evaluate.load_task(args, config)
  if sources.is_multi_label(task.split.source):
    raise InputError("--study is for images with one label each")
  if task.columns is not None:
    raise InputError(
      "--study is for images of all the network's classes: choose the --config "
      "of another data set"
    )
  count = len(task.split)
  rows = np.linspace(0, count - 1, min(number, count)).round().astype(int)
  with reported_as("config.data"):
    rng = np.random.default_rng(0)  # Evaluation draws nothing from it.
    batch = task.split.reader.read(rows, [rng] * len(rows))
  mask = batch["mask"]
  if not mask.any():
    raise InputError("config.data: no image of eval_split can be read")
  run, workdir = args.workdir is not None, None
  if run:
    workdir = flags.local_run(args.workdir)
  return experiments.Subject(
    name=workdir.name if workdir else str(args.weights),
    model=task.model,
    variables=task.variables,
    images=task.normalize(jnp.asarray(batch["image"][mask])),
    labels=jnp.asarray(batch["label"][mask]),
    workdir=workdir,
    seed=config["seed"] if run and not config.get("init_from") else None,
  )
