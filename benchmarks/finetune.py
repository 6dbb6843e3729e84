"""A step that trains everything, or the head, or the last stages, in turn.

    pip install torch
    python benchmarks/finetune.py
    python benchmarks/finetune.py resnet50-224 --batch 8

Prints images/s of each (median of the rounds, and the range), and ours over
training everything and over PyTorch with the same part frozen by
`requires_grad_(False)` and `eval()`. What a step is, `train_step.py` says.
"""

import argparse
import dataclasses
import functools
import sys

import train_step
from turns import take_turns, Work

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


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("case", nargs="?", default="resnet18-64")
  parser.add_argument("--batch", type=int)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=3)
  flags = parser.parse_args()
  case = {**train_step.ON_GPU, **train_step.CASES}[flags.case]
  case = dataclasses.replace(case, batch=flags.batch or case.batch)
  print(train_step.versions(), file=sys.stderr)
  makers = {
    (name, part): functools.partial(make, case, stages)
    for part, stages in PARTS.items()
    for name, make in (("ours", ours), ("pytorch eager", theirs))
  }
  results = take_turns(makers, flags.rounds, flags.seconds)
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


if __name__ == "__main__":
  main()
