"""The recipes of ImageNet on a few thousand photographs, scaled down.

    python benchmarks/rehearse.py DIR                  # each recipe in turn
    python benchmarks/rehearse.py DIR --recipes imagenet_rsb_a2 --epochs 12
    python benchmarks/rehearse.py DIR --config.num_steps=3   # does each run?

DIR holds a folder a class; of each class, four fifths are trained on and the
rest is evaluated. A recipe keeps its whole pipeline: augmentation, loss,
optimizer, schedule (whose times are shares of the run), moving average, form of
the network. What is scaled, S being the recipe's `image_size`:

- classes: those of DIR;
- network: ResNet-18 for ResNet-50, in the recipe's own dtype;
- sizes of images: each times 64 / 224 (`--pixels`), so that the ratio of those
  that are trained and evaluated on stays;
- batch: 64, or the most below it that pairs and copies of an image fill; the
  learning rate follows by the recipe's own `get_config(batch_size=64)`. Two
  optimizers have no such rule there: LAMB's rate stays, as every step of it is
  as long as the rate says; LARS's falls as the square root of the batch (You et
  al. 2020, https://arxiv.org/abs/1904.00962), as scales and biases take it as
  it is;
- BatchNorm: over as many examples as there, at most the batch;
- length: 6 epochs (`--epochs`) times (224 / S)^2, for equally many pixels,
  over the cost of the network, see `NETWORKS`;
- average: over the same share of the run, at least two steps.

What follows as --config.KEY=VALUE goes for all. Each run has a folder in
--workdir: the same command, given again, goes on where it was stopped. A line
of JSON a recipe is written to --out, and a table is printed. A rehearsal has
passed if the loss has fallen and top-1 at the last step is more than three
standard errors above the share of the largest class; else the exit code is 1.
"""

import argparse
import ast
from collections.abc import Mapping, Sequence
import math
import pathlib
import shlex
import sys
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from flax_resnet import schema, sharding, storage
from flax_resnet.cli import flags
from flax_resnet.data import sources
from flax_resnet.data.dataset import Dataset, load
from flax_resnet.errors import InputError, RunError, suggestion
from flax_resnet.training import load_recipe, train
from flax_resnet.training.log import read_rows
from flax_resnet.training.recipe import Recipe
from flax_resnet.training.setup import set_up

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in ROOT.glob("configs/imagenet_*.py"))
# By the network of a recipe: the one that is trained for it, and the time of a
# step in those of ResNet-18 on images of the same size.
NETWORKS = {"resnet50": ("resnet18", 1.0), "resnetrs50": ("resnetrs50", 3.0)}
IMAGES = 1_281_167  # To train on, in ImageNet.
BATCH = 64
SIZE = 224  # That `--pixels` stands for.
ROWS = 10  # Of the log, and checkpoints.
# What is shown as scaled.
SHOWN = (
  *("model.name", "data.image_size", "data.eval_image_size"),
  *("data.early_image_sizes", "batch_size", "model.norm_group_size"),
  *("optim.learning_rate", "optim.warmup_start", "num_epochs", "num_steps"),
  *("ema_decay", "ema_every"),
)


def changes(
  name: str,
  root: pathlib.Path,
  pixels: int,
  epochs: float,
  overrides: Sequence[str] = (),
) -> list[str]:
  """Returns the changes of a recipe that make its rehearsal.

  Args:
    name: name of the recipe.
    root: folder of photographs, a folder a class.
    pixels: size of the images that stands for 224.
    epochs: length at this size, of ResNet-18.
    overrides: other changes, "optim.learning_rate=0.05", which come last.

  Returns:
    "key=value" of each, as `load_recipe` takes them.

  Raises:
    InputError: for a network that has none to be trained for it, and for
      photographs that cannot be read.
  """
  own = load_recipe(ROOT / "configs" / f"{name}.py")
  if own.model.name not in NETWORKS:
    raise InputError(
      f"{name} trains {own.model.name}, for which {__file__} names no network: "
      f"add one to NETWORKS, which has {', '.join(NETWORKS)}"
    )
  network, cost = NETWORKS[own.model.name]
  data, copies = own.data, own.data.get("repeated_augmentation", 1)
  # Mixup and cutmix take examples in pairs.
  batch = BATCH - BATCH % math.lcm(copies, 2)
  values: dict[str, Any] = {
    "batch_size": batch,
    "eval_batch_size": 128,
    "keep_checkpoints": 1,
    "model.name": network,
    "model.num_classes": None,
    "model.norm_group_size": min(own.model.norm_group_size, batch),
    "data.name": "folder",
    "data.root": root,
    "data.train_split": "train[:80%]",
    "data.eval_split": "train[80%:]",
    "data.image_size": scaled_size(data.image_size, pixels),
    "data.num_threads": 2,
  }
  if own.optim.name == "lars":
    rate = own.optim.learning_rate * math.sqrt(batch / own.batch_size)
    values["optim.learning_rate"] = round(rate, 4)
  if data.get("eval_image_size"):
    size = scaled_size(data.eval_image_size, pixels)
    values["data.eval_image_size"] = size
  if data.get("early_image_sizes"):
    values["data.early_image_sizes"] = tuple(
      (until, scaled_size(size, pixels))
      for until, size in data.early_image_sizes
    )
  if not any(o.startswith(("num_epochs=", "num_steps=")) for o in overrides):
    longer = (SIZE / data.image_size) ** 2 / cost
    values["num_epochs"] = max(1, round(epochs * longer))
  # What follows from the length of the run is known with all the rest.
  config = load_recipe(
    ROOT / "configs" / f"{name}.py", [*_texts(values), *overrides]
  )
  steps = num_steps(config, len(data_of(config).train))
  values |= average(own, steps)
  every = math.ceil(steps / ROWS)
  values |= {"log_every": every, "checkpoint_every": every, "eval_every": steps}
  return [*_texts(values), *overrides]


def _texts(values: Mapping[str, Any]) -> list[str]:
  return [f"{key}={value}" for key, value in values.items()]


def scaled_size(size: int, pixels: int) -> int:
  """Returns the size of images where `pixels` stands for 224."""
  return round(size * pixels / SIZE)


def num_steps(config: ConfigDict, num_examples: int) -> int:
  """Returns the length of a run in steps."""
  recipe = schema.build("config", Recipe, config.to_dict())
  return recipe.total_steps(num_examples)


def average(own: ConfigDict, steps: int) -> dict[str, Any]:
  """Returns the keys of a moving average over the recipe's share of the run.

  With decay d, moved every n steps, it is over about n / (1 - d) steps.

  Args:
    own: the recipe, for ImageNet.
    steps: length of the rehearsal in steps.
  """
  if not own.get("ema_decay"):
    return {}
  every, whole = own.get("ema_every", 1), num_steps(own, IMAGES)
  span = max(2.0, every / (1 - own.ema_decay) * steps / whole)
  every = max(1, round(every * steps / whole))
  return {"ema_decay": round(1 - every / span, 6), "ema_every": every}


def data_of(config: ConfigDict) -> Dataset:
  """Returns the data set of a config, with the classes that it has."""
  return load(config.data.to_dict(), num_classes=None)


def majority(data: Dataset) -> float:
  """Returns the share of the largest class in what is evaluated."""
  counts = np.bincount(sources.labels_of(data.eval.source))
  return float(counts.max() / counts.sum())


def standard_error(top1: float, count: int) -> float:
  """Returns that of a share of so many images."""
  return math.sqrt(top1 * (1 - top1) / count)


def verdict(
  losses: Sequence[float], top1: float, count: int, share: float
) -> str:
  """Returns "passed", or what a rehearsal has not reached.

  Args:
    losses: training loss of each row of the log.
    top1: share of the evaluated images that are recognized.
    count: number of these images.
    share: share of the largest class among them.
  """
  if not losses[-1] < losses[0]:
    return "the loss has not fallen"
  if not top1 > share + 3 * standard_error(top1, count):
    return "not above the largest class by three standard errors"
  return "passed"


def scaling(own: ConfigDict, here: ConfigDict) -> dict[str, list[Any]]:
  """Returns [value of the recipe, value here] of each scaled key."""
  before, now = (_flat(config.to_dict()) for config in (own, here))
  pairs = {key: [before.get(key), now.get(key)] for key in SHOWN}
  return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def published(name: str) -> str:
  """Returns what a recipe's docstring says was published of it."""
  text = (ROOT / "configs" / f"{name}.py").read_text()
  record = str(ast.get_docstring(ast.parse(text)))
  line = record.partition("Published: ")[2].partition("\nMeasured:")[0]
  return " ".join(line.split())


def rehearse(
  name: str, overrides: Sequence[str], workdir: pathlib.Path
) -> dict[str, Any]:
  """Trains, or takes what the same command has trained; returns the record.

  Args:
    name: name of the recipe.
    overrides: all changes of it.
    workdir: folder of the run.
  """
  path = ROOT / "configs" / f"{name}.py"
  own, here = load_recipe(path), load_recipe(path, overrides)
  command = shlex.join(
    [
      *("python", "train.py", "--config", f"configs/{name}.py"),
      *("--workdir", str(workdir)),
      *(f"--config.{text}" for text in overrides),
    ]
  )
  record = {
    "recipe": name,
    "published": published(name),
    "scaled": scaling(own, here),
    "command": command,
  }
  done = workdir / "rehearsal.json"
  if done.is_file() and (before := storage.read_json(done)) | record == before:
    return before
  print(f"\n{command}", flush=True)
  try:
    summary = train(here, workdir).summary
  except RunError as error:  # The others are rehearsed all the same.
    print(f"error: {error}", file=sys.stderr, flush=True)
    return record | {"verdict": f"failed: {error}"}
  rows = read_rows(workdir / "metrics.jsonl")
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  last = next(row for row in reversed(rows) if "val/count" in row)
  share = majority(data_of(here))
  top1, count = last["val/top1"], last["val/count"]
  record |= {
    "step": summary["step"],
    "loss/first": losses[0],
    "loss/last": losses[-1],
    **{key: last[key] for key in last if key.startswith("val/")},
    "majority": share,
    "standard_error": standard_error(top1, count),
    "verdict": verdict(losses, top1, count, share),
    "seconds": summary["seconds"],
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  }
  storage.write_json(done, record)
  return record


def row(record: Mapping[str, Any]) -> str:
  """Returns a row of the Markdown table."""
  scaled = ", ".join(
    f"{key.rpartition('.')[2]} {_short(before)} to {_short(now)}"
    for key, (before, now) in record["scaled"].items()
  )
  cells = [record["recipe"].removeprefix("imagenet_"), record["published"]]
  if "val/top1" not in record:
    return f"| {' | '.join([*cells, scaled])} | | | | | {record['verdict']} |"
  cells += [
    scaled,
    f"{record['loss/first']:.3f} to {record['loss/last']:.3f}",
    f"{record['val/top1']:.2%} +- {record['standard_error']:.2%}",
    f"{record['majority']:.2%}",
    f"{record['seconds']:,.0f}",
    record["verdict"],
  ]
  return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
  if isinstance(value, (list, tuple)):
    return "(" + ", ".join(map(_short, value)) + ")"
  return f"{value:.5g}" if isinstance(value, float) else str(value)


def run(args: argparse.Namespace) -> None:
  """Rehearses each recipe; exits with 1 unless all have passed."""
  for name in args.recipes:
    if name not in RECIPES:
      raise InputError(
        f"there is no recipe of ImageNet {name!r}: {suggestion(name, RECIPES)}"
      )
  flags.check_is_positive("--pixels", args.pixels)
  if not args.epochs > 0:
    raise InputError(f"--epochs is {args.epochs}: use a number above 0")
  todo = {}
  for name in args.recipes:
    todo[name] = changes(
      name, args.root, args.pixels, args.epochs, args.overrides
    )
    # All that is wrong with one is known before the first begins.
    set_up(load_recipe(name, todo[name]).to_dict(), sharding.make_mesh())
  flags.enable_compilation_cache()
  records = []
  out = args.out or args.workdir / "rehearsals.jsonl"
  for name, overrides in todo.items():
    records.append(rehearse(name, overrides, args.workdir / name))
    with storage.replacing(out) as partial:
      lines = (storage.to_json(record) + "\n" for record in records)
      partial.write_text("".join(lines))
    jax.clear_caches()  # A program may take as much memory as all else.
  print(
    "\n| recipe | published, on ImageNet | scaled | loss | top-1 | largest "
    "class | seconds | verdict |\n|---|---|---|---|--:|--:|--:|---|"
  )
  for record in records:
    print(row(record))
  passed = sum(record["verdict"] == "passed" for record in records)
  print(f"\n{passed} of {len(records)} have passed; {out}")
  if passed < len(records):
    sys.exit(1)


def main() -> None:
  parser = flags.Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "root", type=flags.path, metavar="DIR", help="the photographs"
  )
  parser.add_argument(
    "--recipes",
    type=lambda text: text.split(","),
    default=RECIPES,
    metavar="NAME,NAME",
    help="all of ImageNet by default",
  )
  parser.add_argument("--pixels", type=int, default=64, metavar="N")
  parser.add_argument("--epochs", type=float, default=6, metavar="N")
  parser.add_argument(
    "--workdir", type=flags.path, default=pathlib.Path("runs/rehearsals")
  )
  parser.add_argument(
    "--out", type=flags.path, help="WORKDIR/rehearsals.jsonl by default"
  )
  with flags.exit_codes():
    run(parser.parse_with_overrides())


if __name__ == "__main__":
  main()
