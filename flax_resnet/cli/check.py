"""Check data before training: counts, broken images, duplicates.

Of an image folder, or of the data of a recipe: --config.data.root=… and so on
change its keys. Counts the images of each class, decodes each image, and finds
those whose pixels are equal. The exit code is 2 if anything is wrong: an image
is broken, or equal images are in more than one class or in more than one split.
"""

import argparse
from collections.abc import Mapping
import os
import pathlib
from typing import Any

from etils import epy

from flax_resnet import recipes, schema, storage
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet import data
  from flax_resnet.data import audit, folder
  from flax_resnet.training import setup

# Folders of a folder that are taken for its splits, if the first is there.
SPLITS = ("train", "val", "valid", "validation", "dev", "test")
# Findings of a kind that are printed.
_MOST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "folder",
    nargs="?",
    type=flags.local,
    metavar="DIR",
    help="image folder, a folder a class",
  )
  parser.add_argument(
    "--config",
    type=flags.place,
    metavar="FILE|URL",
    help="recipe with the data",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> None:
  """Prints what is in the data.

  Raises:
    InputError: at the end, if anything is wrong.
  """
  if (args.folder is None) == (args.config is None):
    raise InputError("give either a folder or --config")
  with reported_as("check"):
    audits = _audit_folder(args) if args.folder else _audit_recipe(args)
  report = audit.report(audits)
  if args.json:
    print(storage.to_json(report))
  else:
    _print_splits(report["splits"])
    _print_findings(report)
  wrong = {
    "broken images": report["wrong"]["broken"],
    "duplicates across splits": report["wrong"]["across_splits"],
    "duplicates with unequal labels": report["wrong"]["unequal_labels"],
  }
  if any(wrong.values()):
    found = ", ".join(f"{what} {n:,}" for what, n in wrong.items() if n)
    raise InputError(f"check: {found}: mend, move or remove them")


def _audit_folder(args: argparse.Namespace) -> list["audit.SplitAudit"]:
  if args.overrides:
    raise InputError(f"--config.{args.overrides[0]} needs --config")
  root = pathlib.Path(os.path.expanduser(args.folder))
  splits = [name for name in SPLITS if (root / name).is_dir()]
  if "train" not in splits:
    splits = ["train"]
  train = folder.FolderSource(root, "train")
  audits = [audit.audit_split("train", train)]
  for split in splits[1:]:
    source = folder.FolderSource(root, split, class_names=train.class_names)
    audits.append(audit.audit_split(split, source))
  return audits


def _audit_recipe(args: argparse.Namespace) -> list["audit.SplitAudit"]:
  path = flags.local_recipe(args.config)
  config = recipes.load_recipe(path, args.overrides).to_dict()
  recipe = schema.build("config", setup.Recipe, config)
  section = {**recipe.data, "in_memory": False}  # Each is read once.
  # Only synthetic images follow the network.
  classes = recipe.model.get("num_classes")
  synthetic = section["name"] == "synthetic"
  dataset = data.load(section, num_classes=classes if synthetic else None)
  splits = {
    section["train_split"]: dataset.train,
    section["eval_split"]: dataset.eval,
  }
  limits = {k: v for k, v in section.items() if k == "max_pixels"}
  return [
    audit.audit_split(
      name, split.source, num_threads=split.options.num_threads, **limits
    )
    for name, split in splits.items()
  ]


def _print_splits(splits: Mapping[str, Mapping[str, Any]]) -> None:
  for name, split in splits.items():
    print(
      f"{name}: {split['images']:,} images, {len(split['broken']):,} broken"
    )
    for length in ("height", "width"):
      if split[length]:
        low, median, high = split[length]
        print(f"  {length} {low:,} to {high:,} pixels, median {median:,}")
    for kind, count in split["formats"].items():
      print(f"  {kind} {count:,}")
  classes = next(iter(splits.values()))["classes"]
  width = max(5, *map(len, map(flags.printable, classes)))
  print(f"\n{'class':{width}}", *(f"{name:>12}" for name in splits))
  for name in classes:
    counts = (f"{split['classes'][name]:12,}" for split in splits.values())
    print(f"{flags.printable(name):{width}}", *counts)


def _print_findings(report: Mapping[str, Any]) -> None:
  duplicates = report["duplicates"]
  kinds = {
    "broken": [
      f"{image}: {error}"
      for split in report["splits"].values()
      for image, error in split["broken"].items()
    ],
    "duplicates across splits": [
      _line(each) for each in duplicates if each["across_splits"]
    ],
    "duplicates with unequal labels": [
      _line(each) for each in duplicates if each["unequal_labels"]
    ],
    "other duplicates": [
      _line(each)
      for each in duplicates
      if not each["across_splits"] and not each["unequal_labels"]
    ],
  }
  for kind, lines in kinds.items():
    print(f"\n{kind}: {len(lines):,}")
    for line in lines[:_MOST]:
      print(f"  {flags.printable(line)}")
    if len(lines) > _MOST:
      print(f"  and {len(lines) - _MOST:,} more: --json has all")


def _line(duplicates: Mapping[str, Any]) -> str:
  return " = ".join(
    f"{image['split']} {image['image']} ({image['class']})"
    for image in duplicates["images"]
  )
