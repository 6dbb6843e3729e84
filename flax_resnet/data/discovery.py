"""What lies at a path, and all splits of it.

A recipe says which kind of data is where, and which splits it reads. What takes
a set as a whole finds both out here.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

from etils import epy

from flax_resnet.data import arrow, places, shards, sources, table
from flax_resnet.data.dataset import open_source
from flax_resnet.data.sources import Columns, Source

with epy.lazy_imports():  # Slow to import, and not every data set needs it.
  from flax_resnet.data import tfds

_MANIFESTS = (".csv", ".tsv", ".parquet")
_ARROW_FILES = ("dataset_dict.json", "state.json")


def kind_of(root: str) -> str:
  """Returns the `data.name` of what lies at a path.

  It is "manifest", "npz" and "webdataset" of files by their endings; of a
  folder "webdataset" or "parquet" if it has such files, or folders with such
  files, and else "folder". There need be nothing at the path.

  Args:
    root: path or URL of a file or a folder, a pattern of shards, or
      "hf-hub:…".
  """
  if root.startswith(arrow.HUB):
    return root
  ending = os.path.splitext(root)[1].lower()
  files = places.files_at(root)
  if not files.is_folder(root):
    kinds = {".npz": "npz", ".tar": "webdataset"}
    return kinds.get(ending, "manifest" if ending in _MANIFESTS else "folder")
  if any(files.is_file(os.path.join(root, name)) for name in _ARROW_FILES):
    return "parquet"
  below = (os.path.join(root, n) for n in files.names(root) if n[0] != ".")
  for folder in (root, *sorted(filter(files.is_folder, below))):
    endings = {os.path.splitext(name)[1] for name in files.names(folder)}
    if ".tar" in endings:
      return "webdataset"
    if endings & {".parquet", ".arrow"}:
      return "parquet"
  return "folder"


def open_splits(
  name: str,
  columns: Columns,
  parts: Mapping[str, str] | None = None,
  **keys: Any,
) -> dict[str, Source]:
  """Opens all splits of a data set; "train" first, if it is there.

  All have the classes of the first.

  Args:
    name: kind or name of the set, see `open_source`.
    columns: names of the columns of a table.
    parts: splits in the notation of TFDS by what they are called here; None
      (default) for all splits, each whole.
    **keys: further arguments of `open_source`, but for its splits.

  Raises:
    ValueError: for a set that cannot be.
    FileNotFoundError: if it is not there.
  """
  if not parts:
    found = _split_names(name, columns, keys.get("root"), keys.get("data_dir"))
    parts = {split: split for split in found}
  splits: dict[str, Source] = {}
  class_names: Sequence[str] = ()
  for split in sorted(parts, key=lambda each: each != "train"):
    splits[split] = open_source(
      "train",
      None,
      class_names,
      columns,
      name=name,
      train_split=parts[split],
      eval_split=parts[split],
      image_size=1,  # Of synthetic images alone.
      **keys,
    )
    class_names = splits[split].class_names
  return splits


def _split_names(
  name: str, columns: Columns, root: str | None, data_dir: str | None
) -> Sequence[str]:
  """Returns the names of the splits; ["train"] of a set that is not there."""
  if name.startswith(arrow.HUB):
    return arrow.split_names(name, columns.config_name)
  root = os.path.expanduser(root or "")
  if name == "folder":
    there = [split for split in shards.SPLITS if split in _names(root)]
    return there if "train" in there else ["train"]
  if name == "manifest":
    return table.open_table(pathlib.Path(root), columns).split_names or [
      "train"
    ]
  if name == "webdataset":
    return shards.split_names(root)
  if name == "parquet":
    return arrow.split_names(root, columns.config_name)
  if name == "npz":
    return sources.npz_splits(root)
  return tfds.split_names(name, data_dir and os.path.expanduser(data_dir))


def _names(root: str) -> list[str]:
  return [os.path.basename(folder) for folder in _subfolders(root)]


def _subfolders(root: str) -> list[str]:
  if not os.path.isdir(root):
    return []
  with os.scandir(root) as entries:
    return sorted(
      e.path for e in entries if e.is_dir() and not e.name.startswith(".")
    )
