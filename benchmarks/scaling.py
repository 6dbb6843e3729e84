"""How cost grows: depth, width, batch, image size and classes, beside PyTorch.

    pip install torch
    python benchmarks/scaling.py --out scaling.png

Images/s, memory, page faults and the time to the first step's end, ours and
PyTorch eager in turn. Memory is the peak of the resident set in steps after the
first, less that after the frameworks were imported, each contender in a process
of its own. Page faults are the pages of 4 KiB that a step asks the system for
because malloc gave them back: MALLOC_MMAP_THRESHOLD_=1073741824 and
MALLOC_TRIM_THRESHOLD_=4294967296 in the environment make it keep them.
"Work" is the network's multiply-adds: what falls behind grows faster than it.
Linux only.
"""

import argparse
from collections.abc import Callable
import ctypes
import dataclasses
import functools
import importlib
import json
import pathlib
import resource
import tempfile
import time

from matplotlib import figure as figures
import train_step
from train_step import Case, resnet, versions
from turns import Result, take_turns, Work


@dataclasses.dataclass(frozen=True)
class Sized(Case):
  """A case with numbers of its own.

  Attributes:
    width: factor of all channels.
    classes: number of classes.
  """

  width: int = 1
  classes: int = 0

  @property
  def widths(self) -> tuple[int, ...]:
    return tuple(self.width * features for features in super().widths)

  @property
  def num_classes(self) -> int:
    return self.classes or super().num_classes


def cifar(depth: int, batch: int, **others) -> Sized:
  blocks = ((depth - 2) // 6,) * 3
  return Sized(f"cifar_resnet{depth}", blocks, 32, batch, cifar=True, **others)


def imagenet(size: int, batch: int, classes: int) -> Sized:
  case = resnet(18, (2, 2, 2, 2), size, batch)
  return Sized(case.model, case.sizes, size, batch, classes=classes)


CURVES: dict[str, dict[int, Sized]] = {
  "layers": {n: cifar(n, 4) for n in (20, 56, 110, 1202)},
  "times the channels": {n: cifar(20, 32, width=n) for n in (1, 2, 4, 8)},
  "images a step": {n: cifar(20, n) for n in (1, 8, 32, 128, 512)},
  "pixels a side": {n: imagenet(n, 8, 1000) for n in (64, 128, 224, 320)},
  "classes": {n: imagenet(64, 32, n) for n in (10, 1000, 21_841)},
  "ResNet-50, images a step": {8: train_step.CASES["resnet50-224"]},
}
CONTENDERS = {"ours": "jax", "PyTorch": "torch"}


@dataclasses.dataclass(frozen=True)
class Measured:
  """Makes the work of a contender, and writes what its first step took.

  Attributes:
    name: name of the contender.
    case: network and batch.
    path: path of the JSON file that is written.
    trim: whether ours gives back what compilation leaves in the heap, as the
      trainer does.
  """

  name: str
  case: Case
  path: str
  trim: bool

  def __call__(self) -> Work:
    importlib.import_module(CONTENDERS[self.name])
    if self.name == "ours":
      importlib.import_module("flax_resnet.training.steps")
      # With `scan`, which is made for the depth: unrolled, 1,202 layers compile
      # for minutes.
      options = {"stage_features": self.case.widths} if self._sized else {}
      make: Callable[[], Work] = functools.partial(
        train_step.ours,
        self.case,
        scan=sum(self.case.sizes) > 100,
        **options,
      )
    else:
      make = functools.partial(train_step.pytorch, self.case, compiled=False)
    before = _status("VmRSS")
    start = time.perf_counter()
    work = make()
    work(1)
    first = time.perf_counter() - start
    if self.trim and self.name == "ours":
      ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.

    def measured(steps: int) -> None:
      before_steps = _page_faults()
      work(steps)
      faults = (_page_faults() - before_steps) / steps
      memory = _status("VmHWM") - before
      row = {"first": first, "memory": memory, "faults": faults}
      pathlib.Path(self.path).write_text(json.dumps(row))

    return measured

  @property
  def _sized(self) -> bool:
    return isinstance(self.case, Sized) and self.case.width > 1


def _page_faults() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _status(key: str) -> float:
  """Returns MiB that the kernel says of this process."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  value = next(line for line in lines if line.startswith(key + ":"))
  return int(value.split()[1]) / 1024


def measure(
  case: Case, rounds: int, seconds: float, trim: bool
) -> dict[str, dict]:
  """Returns images/s, memory in MiB, and seconds to the first step's end."""
  found: dict[str, dict] = {}
  with tempfile.TemporaryDirectory() as folder:
    makers = {
      name: Measured(name, case, str(pathlib.Path(folder, name)), trim)
      for name in CONTENDERS
    }
    results: dict[str, Result] = take_turns(makers, rounds, seconds)
    for name, result in results.items():
      if result.error:
        raise SystemExit(f"{name} on {case}: {result.error}")
      row = json.loads(pathlib.Path(folder, name).read_text())
      found[name] = row | {"rate": case.batch * result.median}
    found["ours"]["ratio"] = results["ours"].ratio(results["PyTorch"])
  return found


def multiply_adds(case: Case) -> int:
  """Returns the multiply-adds of a step's images, forward."""
  from flax_resnet import create_model
  from flax_resnet.models.cost import cost

  options = {"stage_features": case.widths} if isinstance(case, Sized) else {}
  model = create_model(case.model, num_classes=case.num_classes, **options)
  return case.batch * cost(model, case.size).multiply_adds


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("curves", nargs="*", help=", ".join(CURVES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=1.5)
  parser.add_argument("--out", default="scaling.png")
  parser.add_argument("--trim", action="store_true", help="as the trainer does")
  flags = parser.parse_args()
  print(versions())
  print(
    "| | | work of a step | images/s, ours | PyTorch | ratio "
    "| MiB, ours | PyTorch | ratio | first step, ours | PyTorch "
    "| page faults, ours | PyTorch |"
  )
  print("|---" + 12 * "|--:" + "|")
  drawn: dict[str, dict[int, dict]] = {}
  for title in flags.curves or CURVES:
    drawn[title] = {}
    for number, case in CURVES[title].items():
      row = measure(case, flags.rounds, flags.seconds, flags.trim)
      drawn[title][number] = row
      ours, theirs = row["ours"], row["PyTorch"]
      print(
        f"| {case.model}, {title} | {number:,} "
        f"| {multiply_adds(case) / 1e9:.2f} GMAC "
        f"| {ours['rate']:.3g} | {theirs['rate']:.3g} | {ours['ratio']:.2f} "
        f"| {ours['memory']:,.0f} | {theirs['memory']:,.0f} "
        f"| {ours['memory'] / theirs['memory']:.2f} "
        f"| {ours['first']:.1f} s | {theirs['first']:.1f} s "
        f"| {ours['faults']:,.0f} | {theirs['faults']:,.0f} |",
        flush=True,
      )
  draw(drawn, flags.out)


def draw(drawn: dict[str, dict[int, dict]], path: str) -> None:
  """Draws what was measured: a column a curve, rates above, memory below."""
  columns = {k: v for k, v in drawn.items() if len(v) > 1}
  if not columns:
    return
  size = (3 * len(columns), 5)
  figure = figures.Figure(figsize=size, dpi=150, layout="constrained")
  axes = figure.subplots(2, len(columns), squeeze=False, sharex="col")
  for column, (title, rows) in zip(axes.T, columns.items(), strict=True):
    for panel, key in zip(column, ("rate", "memory"), strict=True):
      for name, style in zip(CONTENDERS, ("o-", "s--"), strict=True):
        values = [row[name][key] for row in rows.values()]
        panel.plot(list(rows), values, style, label=name, markersize=4)
      panel.set(xscale="log", yscale="log")
      panel.grid(alpha=0.3)
      panel.spines[["top", "right"]].set_visible(False)
    column[1].set_xlabel(title)
    column[1].set_xticks(list(rows), [f"{n:,}" for n in rows])
    column[1].minorticks_off()
  axes[0, 0].set_ylabel("images/s")
  axes[1, 0].set_ylabel("MiB of a step")
  axes[0, 0].legend(frameon=False)
  figure.savefig(path)
  print(f"wrote {path}")


if __name__ == "__main__":
  main()
