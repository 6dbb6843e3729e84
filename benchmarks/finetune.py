"""Fine-tuning: its learning rate, what it is worth, and how fast a step is.

    python benchmarks/finetune.py --photographs DIR
    pip install torch
    python benchmarks/finetune.py
    python benchmarks/finetune.py resnet50-224 --batch 8

With --photographs, a folder of images, a folder a class: `configs/finetune.py`
from weights of CIFAR-10 at each of `--rates`, for 256 examples, on 64 % of each
class, evaluated on 16 %; the rate that is best there is chosen. Then, on these
80 %, evaluated once on the 20 % that nothing has seen: everything and the head
alone, both at that rate, and from scratch by `configs/folder.py` at its own.
Each run has a folder in --workdir: the same command, given again, goes on where
it was stopped; --config.KEY=VALUE goes for all.

Without it: a step that trains everything, or the head, or the last stages, in
turn. Prints images/s of each (median of the rounds, and the range), and ours
over training everything and over PyTorch with the same part frozen by
`requires_grad_(False)` and `eval()`. What a step is, `train_step.py` says.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
import sys
from typing import Any

from etils import epy
import train_step
from turns import take_turns, Work

import flax_resnet as fr
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, suggestion

with epy.lazy_imports():  # Not in the processes of other contenders.
  import jax

  from flax_resnet.training import log

ROOT = pathlib.Path(__file__).parents[1]
# What is trained and evaluated on: to choose the rate, and to report.
CHOOSING = ("data.train_split=train[:64%]", "data.eval_split=train[64%:80%]")
REPORTED = ("data.train_split=train[:80%]", "data.eval_split=train[80%:]")
# By what is frozen: the stages, or None for nothing and -1 for all but the
# head; and the share of PyTorch's blocks, which lie in one sequence.
PARTS = {"everything": None, "last two stages": 2, "head": -1}


def ours(case: train_step.Case, stages: int | None) -> Work:
  from flax_resnet.training.freezing import Freezing

  freezing = Freezing(trunk=True) if stages == -1 else Freezing(stages=stages)
  return train_step.ours(case, freezing=freezing)


def theirs(case: train_step.Case, stages: int | None) -> Work:
  stem = 3 if case.cifar else 4
  if stages is None:
    frozen = ()
  elif stages == -1:
    frozen = ("body",)
  else:
    frozen = [f"body.{n}" for n in range(stem + sum(case.sizes[:stages]))]
  return train_step.pytorch(case, compiled=False, frozen=tuple(frozen))


def run(
  recipe: str, name: str, changes: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
  """Trains a network, or takes what an earlier call has trained.

  Args:
    recipe: name of the file in `configs/`.
    name: folder of the run, in --workdir.
    changes: changes of the recipe, "freeze_trunk=True".
    args: the flags.

  Returns:
    The last evaluation, with "seconds" of the run.
  """
  overrides = [
    f"model.name={args.model}",
    f"data.root={args.photographs}",
    f"data.image_size={args.size}",
    f"num_epochs={args.epochs}",
    "eval_every=1000000",  # At the end alone.
    "checkpoint_every=50",
    "keep_checkpoints=1",
    *changes,
    *args.overrides,
  ]
  config = fr.load_recipe(ROOT / "configs" / f"{recipe}.py", overrides)
  workdir = args.workdir / f"{args.model}_{args.size}_{args.epochs}" / name
  summary = fr.train(config, workdir).summary
  jax.clear_caches()
  rows = log.read_rows(workdir / "metrics.jsonl")
  last = next(row for row in reversed(rows) if "val/count" in row)
  return {**last, "seconds": summary["seconds"]}


def accuracy(args: argparse.Namespace) -> None:
  """Chooses the rate, and prints what training is worth at it."""
  start = f"init_from={args.weights}"
  batch = fr.load_recipe(ROOT / "configs" / "finetune.py").batch_size

  def at(rate: float) -> list[str]:
    return [start, f"optim.learning_rate={rate * batch / 256}"]

  found = {
    rate: run("finetune", f"rate_{rate:g}", [*at(rate), *CHOOSING], args)
    for rate in args.rates
  }
  chosen = max(found, key=lambda rate: found[rate]["val/top1"])
  head = [*at(chosen), "freeze_trunk=True", *REPORTED]
  results = {
    f"everything, rate {chosen:g}": run(
      "finetune", f"everything_{chosen:g}", [*at(chosen), *REPORTED], args
    ),
    f"the head alone, rate {chosen:g}": run(
      "finetune", f"head_{chosen:g}", head, args
    ),
    "from scratch, configs/folder.py": run("folder", "scratch", REPORTED, args),
  }
  print(
    f"\n{args.model} from {args.weights}, {args.size} px, {args.epochs} "
    "epochs\n\n| peak for 256 examples | top-1 in %, held out of the training "
    "set | seconds |\n|--:|--:|--:|"
  )
  for rate, result in found.items():
    print(_row(f"{rate:g}", result))
  print(f"\nchosen: {chosen:g}{_edge(chosen, args.rates)}")
  print("\n| trained | top-1 in % | seconds |\n|---|--:|--:|")
  for name, result in results.items():
    print(_row(name, result))


def _row(name: str, result: dict[str, Any]) -> str:
  top1, count = result["val/top1"], result["val/count"]
  error = (top1 * (1 - top1) / count) ** 0.5
  return (
    f"| {name} | {100 * top1:.2f} +- {100 * error:.2f} of {count:,} | "
    f"{result['seconds']:,.0f} |"
  )


def _edge(chosen: float, rates: Sequence[float]) -> str:
  """Returns what to say of a rate beyond which nothing was tried."""
  if len(rates) > 1 and chosen in (min(rates), max(rates)):
    return ", at an end of what was tried: try rates beyond it as well"
  return ""


def speed(args: argparse.Namespace) -> None:
  """Prints images/s by what is trained, beside PyTorch."""
  cases = {**train_step.ON_GPU, **train_step.CASES}
  if args.case not in cases:
    raise InputError(
      f"there is no case {args.case!r}: {suggestion(args.case, cases)}"
    )
  case = cases[args.case]
  case = dataclasses.replace(case, batch=args.batch or case.batch)
  print(train_step.versions(), file=sys.stderr)
  makers = {
    (name, part): functools.partial(make, case, stages)
    for part, stages in PARTS.items()
    for name, make in (("ours", ours), ("pytorch eager", theirs))
  }
  results = take_turns(makers, args.rounds, args.seconds)
  print(f"{case.model} {case.size} px, batch {case.batch}")
  for (name, part), result in results.items():
    if result.error:
      print(f"  {part:16} {name:14} not measured: {result.error}")
      continue
    low, high = (case.batch * f(result.rates) for f in (min, max))
    line = f"  {part:16} {name:14} {case.batch * result.median:8.1f} images/s"
    line += f" ({low:.1f} to {high:.1f})"
    whole, other = results[name, "everything"], results["pytorch eager", part]
    line += f"  {result.ratio(whole):.2f} of everything"
    if name == "ours" and other.rates:
      line += f", {result.ratio(other):.2f} of pytorch"
    print(line)


def _rates(text: str) -> list[float]:
  try:
    rates = [float(rate) for rate in text.split(",")]
  except ValueError:
    rates = []
  if not rates or not all(rate > 0 for rate in rates):
    raise InputError(
      f"--rates is {text!r}: give numbers above 0, such as 0.01,0.04"
    )
  return rates


def main() -> None:
  parser = flags.Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("case", nargs="?", default="resnet18-64")
  parser.add_argument("--batch", type=int)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=3)
  group = parser.add_argument_group("accuracy")
  group.add_argument("--photographs", type=flags.path, metavar="DIR")
  group.add_argument("--weights", default="cifar_resnet20.cifar10")
  group.add_argument("--model", default="cifar_resnet20", help="of --weights")
  group.add_argument("--size", type=int, default=64, help="of images")
  group.add_argument("--epochs", type=int, default=3)
  group.add_argument("--rates", type=_rates, default=[0.01, 0.04, 0.16])
  group.add_argument(
    "--workdir", type=flags.path, default=pathlib.Path("runs/finetune")
  )
  with flags.exit_codes():
    args = parser.parse_with_overrides()
    if args.photographs is None:
      if args.overrides:
        raise InputError("--config.KEY=VALUE is of --photographs DIR: give it")
      speed(args)
      return
    flags.enable_compilation_cache()
    accuracy(args)


if __name__ == "__main__":
  main()
