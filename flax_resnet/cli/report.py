"""Write a page on what a run, or several, came to.

One HTML file that needs no network: recipe, curves, accuracy by class, what is
taken for what, calibration, the surest errors and where the network looks,
gradients and responses. Runs that differ in their seed alone are one, with mean
and spread. RUN/report.html is replaced; nothing else of the run is touched.
"""

import argparse
import pathlib

from etils import epy

from flax_resnet import bucket
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet.report import page


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    type=flags.place,
    nargs="+",
    required=True,
    metavar="RUN|URL",
    help="folder of a run, or of several that are shown beside each other",
  )
  parser.add_argument(
    "--out",
    type=flags.path,
    metavar="FILE",
    help="the page; RUN/report.html by default, or runs/report.html of several",
  )


def run(args: argparse.Namespace) -> None:
  """Prints what is missing on the page, and where it is."""
  if len(set(args.workdir)) < len(args.workdir):
    raise InputError("--workdir names a run twice: name each once")
  workdirs = [flags.local_run(workdir) for workdir in args.workdir]
  out, is_in_bucket = args.out, False
  if out is None and len(workdirs) == 1:
    out = workdirs[0] / "report.html"
    is_in_bucket = bucket.is_url(args.workdir[0])
  elif out is None:
    out = pathlib.Path("runs/report.html")
    out.parent.mkdir(exist_ok=True)
  with reported_as("report"):
    for problem in page.write_report(workdirs, out):
      print(f"missing: {flags.printable(bucket.shown(problem))}")
    if is_in_bucket:  # What is written into a workdir stays there.
      bucket.copy_up([out])
  print(bucket.shown(str(out)))
