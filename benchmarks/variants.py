"""Variants of a recipe next to one another: mean and spread over seeds.

    python benchmarks/variants.py digits_precision
    python benchmarks/variants.py fashion_precision --seeds 2
    python benchmarks/variants.py fashion_regularisers --seeds 2
    python benchmarks/variants.py cifar10_he         # for a GPU
    python benchmarks/variants.py cifar10_fast       # likewise
    python benchmarks/variants.py cifar10_he --seeds 1 --config.num_steps=20

What follows as --config.KEY=VALUE goes for all variants. Each run has a workdir
of its own: the same command, given again, goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import statistics

import jax

from flax_resnet.training import load_recipe, Stopped, train

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Variant:
  """A recipe with some keys changed.

  Attributes:
    recipe: Name of the file in `configs/`.
    overrides: Changed keys, "optim.learning_rate=0.05".
    published: Top-1 and its source, to print beside what is measured.
  """

  recipe: str
  overrides: Sequence[str] = ()
  published: str = ""


PLAIN = "loss.label_smoothing=0.0"
SMOOTH = "loss.label_smoothing=0.1"
EMA = "ema_decay=0.995"
MIXUP = "augment.mixup=0.2"
CUTMIX = "augment.cutmix=1.0"


def _precision(recipe: str) -> dict[str, Variant]:
  return {
    dtype: Variant(recipe, (f"model.dtype={dtype}",))
    for dtype in ("float32", "bfloat16")
  }


def _he(depth: int, error: float) -> Variant:
  """A row of Table 6 of He et al. 2015."""
  recipe = "cifar10_resnet110" if depth == 110 else "cifar10_resnet20"
  return Variant(
    recipe,
    (f"model.name=cifar_resnet{depth}",),
    f"{100 - error:.2f} % (error {error:.2f} %)",
  )


STUDIES = {
  "digits_precision": _precision("digits"),
  "fashion_precision": _precision("fashion_mnist"),
  "fashion_regularisers": {
    "none of them": Variant("fashion_mnist", (PLAIN,)),
    "label smoothing 0.1": Variant("fashion_mnist", (SMOOTH,)),
    "moving average 0.995": Variant("fashion_mnist", (PLAIN, EMA)),
    "mixup 0.2": Variant("fashion_mnist", (PLAIN, MIXUP)),
    "cutmix 1.0": Variant("fashion_mnist", (PLAIN, CUTMIX)),
    "all of them": Variant("fashion_mnist", (SMOOTH, EMA, MIXUP, CUTMIX)),
  },
  "cifar10_he": {
    "ResNet-20": _he(20, 8.75),
    "ResNet-32": _he(32, 7.51),
    "ResNet-44": _he(44, 7.17),
    "ResNet-56": _he(56, 6.97),
    "ResNet-110": _he(110, 6.43),
    # Fig. 6 has their curves; the paper gives no numbers.
    "plain-20": Variant("cifar10_resnet20", ("model.name=cifar_plain20",)),
    "plain-56": Variant("cifar10_resnet20", ("model.name=cifar_plain56",)),
  },
  "cifar10_fast": {
    "fast": Variant(
      "cifar10_fast",
      published="94 % in 26 s on a V100 (Page 2019), in 2.6 s on an A100 "
      "(Jordan 2024)",
    )
  },
}


def run(
  variant: Variant, seed: int, changes: Sequence[str], folder: pathlib.Path
) -> dict:
  """Trains one network, or takes what an earlier call has trained."""
  overrides = (*variant.overrides, *changes)
  config = load_recipe(
    ROOT / "configs" / f"{variant.recipe}.py", [f"seed={seed}", *overrides]
  )
  # Two studies that have a run in common share it.
  changed = sorted(o for o in overrides if not o.startswith("data.data_dir="))
  name = "_".join([variant.recipe, *changed, f"seed={seed}"])
  return train(config, folder / name.replace("/", "-")).summary


def row(name: str, variant: Variant, summaries: Sequence[dict]) -> str:
  """Returns a row of the Markdown table."""
  scores = [100 * summary["val/top1"] for summary in summaries]
  spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
  each = ", ".join(f"{score:.2f}" for score in scores)
  seconds = statistics.mean(summary["seconds"] for summary in summaries)
  return (
    f"| {name} | {statistics.mean(scores):.2f}{spread} | {each} | "
    f"{summaries[0]['step']:,} | {seconds:,.0f} | {variant.published} |"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("study", choices=STUDIES)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument(
    "--workdir", type=pathlib.Path, default=pathlib.Path("runs/variants")
  )
  flags, overrides = parser.parse_known_args()
  changes = [text.removeprefix("--config.") for text in overrides]
  variants = STUDIES[flags.study]
  found = {name: [] for name in variants}
  try:
    for seed in range(flags.seeds):  # Seed by seed: rows fill up evenly.
      for name, variant in variants.items():
        found[name].append(run(variant, seed, changes, flags.workdir))
  except Stopped as stopped:
    print(stopped)
    raise SystemExit(stopped.exit_code) from None
  device = jax.devices()[0].device_kind
  print(
    f"\n{flags.study} on {jax.device_count()} x {device} {' '.join(changes)}\n"
    "\n| variant | top-1 in % | each | steps | seconds a run | published |"
    "\n|---|--:|---|--:|--:|---|"
  )
  for name, summaries in found.items():
    print(row(name, variants[name], summaries))


if __name__ == "__main__":
  main()
