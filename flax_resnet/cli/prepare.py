"""Prepare data that are quick to read: as array_record, pictures made smaller.

SOURCE is a folder of images, a manifest, a folder of tar shards or a pattern of
theirs, a folder of parquet or Arrow files, hf-hub:OWNER/NAME or an .npz file;
shards and parquet files may be in a bucket, gs://... or s3://... Its splits are
written as a prepared set that data.name=NAME reads, without TensorFlow. With
--max-side, pictures whose longer side has more pixels are stored as JPEGs of so
many; all others byte by byte. What was stopped is gone on with.
--config.data.name=…, --config.data.label_column=… and so on say what cannot be
seen of SOURCE, and --config.data.on_error=skip leaves out broken images.

Or it is the name of a TFDS data set, which is downloaded and stored as
array_record with TensorFlow: pip install 'flax_resnet[prepare]'; with
--max-side, of one that is prepared already.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import re
import signal
import sys
from typing import Any

from etils import epy

from flax_resnet import recipes, schema
from flax_resnet.cli import flags
from flax_resnet.errors import reported_as
from flax_resnet.training.stop import Stopped

with epy.lazy_imports():
  import tqdm

  from flax_resnet.data import dataset, discovery, preparation, sources, tfds


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "source",
    metavar="SOURCE",
    help="path of data, or a TFDS name: cifar10, imagenet2012, ...",
  )
  parser.add_argument(
    "--max-side",
    type=int,
    metavar="N",
    help="largest length of a picture's longer side in pixels",
  )
  parser.add_argument(
    "--quality",
    type=int,
    metavar="Q",
    help="of the JPEGs that are made smaller, 1 to 100; 90 by default",
  )
  parser.add_argument(
    "--split",
    action="append",
    default=[],
    metavar="NAME=PART",
    help='a split of the new set, "val=train[80%%:]"; may be given several '
    "times, all splits of SOURCE by default",
  )
  parser.add_argument(
    "--name",
    help="name of the new set; that of SOURCE and --max-side by default",
  )
  parser.add_argument(
    "--data-dir",
    type=flags.local,
    metavar="DIR",
    help="where to; TFDS's own default otherwise",
  )
  parser.add_argument(
    "--manual-dir",
    type=flags.local,
    metavar="DIR",
    help="where archives are already, as those of imagenet2012 have to be; "
    "downloads/manual in --data-dir otherwise",
  )


def run(args: argparse.Namespace) -> None:
  """Writes the data set and prints where it is."""
  with reported_as(f"prepare {args.source}"):
    is_path = _is_path(args)
    if not is_path and args.max_side is None:
      _check_flags(args, "--max-side", "quality", "name", "split", "overrides")
      print(tfds.prepare(args.source, args.data_dir, args.manual_dir))
      return
    _check_flags(args, "the name of a TFDS set alone", "manual_dir")
    if args.max_side is None:
      _check_flags(args, "--max-side", "quality")
    print(_prepare(args, is_path))


def _is_path(args: argparse.Namespace) -> bool:
  """Returns whether SOURCE is a path, there or not, and not a TFDS name."""
  source = args.source
  if any(key.startswith("data.name=") for key in args.overrides):
    return True
  if source.startswith(("hf-hub:", "/", ".", "~")):
    return True
  if "{" in source or "://" in source:
    return True
  if os.path.exists(source):  # A set may be called like a folder.
    return not tfds.is_known(source)
  return source.endswith((".csv", ".tsv", ".parquet", ".npz", ".tar"))


def _check_flags(args: argparse.Namespace, needed: str, *flags: str) -> None:
  """Raises ValueError if one of these flags is given, which needs another."""
  for flag in flags:
    if getattr(args, flag):
      spelled = f"--{flag.replace('_', '-')}"
      if flag == "overrides":
        spelled = f"--config.{args.overrides[0]}"
      raise ValueError(f"{spelled} needs {needed}: see --help")


def _prepare(args: argparse.Namespace, is_path: bool) -> str:
  """Writes the splits of SOURCE; returns where they are."""
  for_source, for_columns = _data(args, is_path)
  columns = sources.Columns(**for_columns)
  on_error = for_source.get("on_error", "stop")
  pictures = preparation.Pictures(
    args.max_side,
    **{} if args.quality is None else {"quality": args.quality},
    **{k: v for k, v in for_source.items() if k == "max_pixels"},
  )
  splits = discovery.open_splits(
    columns=columns, parts=_parts(args.split), **for_source
  )
  bar = tqdm.tqdm(
    total=sum(map(len, splits.values())),
    unit="image",
    disable=not sys.stderr.isatty(),
  )
  name = args.name or _name(args.source, args.max_side)
  try:
    with bar:
      folder, counts = preparation.prepare_splits(
        splits,
        name,
        args.data_dir,
        pictures,
        on_error=on_error,
        num_threads=_cores(),
        advance=bar.update,
      )
  except KeyboardInterrupt:
    raise Stopped(
      "interrupted: the same command goes on with it", signal.SIGINT
    ) from None
  each = ", ".join(f"{split} {count:,}" for split, count in counts.items())
  where = f" data.data_dir={args.data_dir}" if args.data_dir else ""
  return f"{folder}: {each}\nto read it: data.name={name}{where}"


def _parts(splits: Sequence[str]) -> dict[str, str]:
  """Returns what `--split` says by the names of the new splits."""
  parts = {}
  for text in splits:
    name, equals, part = text.partition("=")
    if not (name and equals and part) or name in parts:
      raise ValueError(
        f"--split is {text}: give each a name of its own and a part, "
        "val=train[80%:]"
      )
    parts[name] = part
  return parts


def _data(
  args: argparse.Namespace, is_path: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the arguments of `open_source`, and the fields of `Columns`."""
  if not is_path and args.source in set(tfds.OTHERS) - {"digits"}:
    raise ValueError(f"{args.source!r} is a kind of data: give a path of some")
  section: dict[str, Any] = {"name": args.source, "data_dir": args.data_dir}
  if is_path:
    section = {
      "name": discovery.kind_of(os.path.expanduser(args.source)),
      "root": args.source,
    }
  config = recipes.override({"data": section}, args.overrides).to_dict()
  if others := sorted(config.keys() - {"data"}):
    raise ValueError(f"config.{others[0]} is unknown here: use config.data.…")
  for_source, for_columns = schema.arguments(
    "config.data",
    config["data"],
    dataset.open_source,
    sources.Columns,
    # What is not a key of a config, and what a whole set does not have.
    given=(
      *("part", "num_classes", "class_names", "columns"),
      *("train_split", "eval_split", "image_size"),
    ),
  )
  return for_source, for_columns


def _name(source: str, max_side: int | None) -> str:
  """Returns what a new set is called: "photos_400"."""
  path = pathlib.Path(os.path.expanduser(source.partition("@")[0])).absolute()
  is_folder = path.is_dir() or ("://" in source and not path.suffix)
  if source.startswith("hf-hub:") or is_folder:
    stem = path.name
  elif "{" in source:
    stem = path.parent.name
  else:
    stem = source if not path.suffix else path.stem
  stem = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "data"
  stem = stem if stem[0].isalpha() else f"data_{stem}"
  return stem if max_side is None else f"{stem}_{max_side}"


def _cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
