"""Parquet and Arrow sets as a source, of a folder or of the Hugging Face hub.

`datasets` reads them: it keeps an Arrow copy of parquet files in its cache, and
maps it, so that rows are random access and worker processes share them.
"""

from collections.abc import Sequence
import operator
import os
import pathlib
import re
from typing import Any, SupportsIndex

from etils import epy
import numpy as np

from flax_resnet import bucket
from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.folder import check_content, read_image
from flax_resnet.data.identity import Identity, identity_of_labels
from flax_resnet.data.labels import (
  classes_beside,
  Codes,
  labels_of_texts,
  read_classes,
  sorted_classes,
)
from flax_resnet.data.packed import SharedArray
from flax_resnet.data.places import fetch_folder
from flax_resnet.data.sources import Columns, no_split, part_of, Record
from flax_resnet.errors import ImageError, listing

with epy.lazy_imports():  # An extra, and slow to import.
  import datasets  # pyright: ignore[reportMissingImports]
  from datasets import exceptions  # pyright: ignore[reportMissingImports]
  import pyarrow.compute as pc  # pyright: ignore[reportMissingImports]

HUB = "hf-hub:"
_PART = r"(?!\.\.?(/|$))[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}(/{_PART})?(@{_PART})?", re.ASCII)
# Of `datasets`: folders of these names are splits.
_SPLIT_FOLDERS = {
  *("train", "training", "validation", "valid", "dev", "val"),
  *("test", "testing", "eval", "evaluation"),
}


class ArrowSource:
  """Images and labels of a set that `datasets` reads.

  Images stay encoded; one of which only the path is there is read from it. A
  part of a split, such as "train[:80%]", is taken of a seeded order in which
  all classes are spread evenly; the whole is in the order of the rows.

  Args:
    root: path of a folder of .parquet or .arrow files, or of one that
      `save_to_disk` has written; its gs:// or s3:// URL, which is copied to the
      user's cache folder first; or "hf-hub:OWNER/NAME", with "@REVISION" if so
      wanted, a set of the hub.
    split: a split in the notation of TFDS.
    columns: names of the columns, and of the configuration.
    seed: seed of the order that parts are taken of; default 0.
    class_names: names of the classes, by label; None (default) for those that
      the set or `columns.classes_file` gives, or for what the labels are.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Raises:
    ValueError: for a set that cannot be read as labeled images.
    FileNotFoundError: if it is not there.
  """

  channels = 3

  def __init__(
    self,
    root: str | os.PathLike,
    split: str,
    columns: Columns,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
  ):
    self._max_pixels, self._column = max_pixels, columns.image_column
    root = os.path.expanduser(root)
    is_local = not root.startswith(HUB)
    self._title = f"{split} in {root}"
    root = _local(root)
    self._folder = root if is_local else ""
    splits = _load(root, columns.config_name)
    base = split.split("[")[0]
    sizes = {name: len(each) for name, each in splits.items()}
    if not sizes.get(base):
      raise ValueError(f"{root}: {no_split(split, sizes)}")
    whole = splits[base]
    if is_local and whole.info.builder_name == "imagefolder":
      _check_folders(root)
    self._images = _images(root, whole, columns)
    names, texts, codes = _labels(root, whole, columns)
    given = class_names
    if not given and columns.classes_file is not None:
      given = read_classes(columns.classes_file)
    if not given and is_local and not names:
      given = classes_beside(pathlib.Path(root), None)
    self.class_names = list(given or names or sorted_classes(texts))
    if len(self.class_names) < 2:
      raise ValueError(
        f"{root} has {len(self.class_names)} class: there must be 2 at least "
        "to tell apart"
      )
    labels = labels_of_texts(
      texts,
      codes,
      self.class_names,
      lambda row: f"record {row} of {base} in {root}",
    )
    rows = part_of(split, labels, seed)
    self._rows = None if rows is None else SharedArray(rows)
    self._labels = SharedArray(labels if rows is None else labels[rows])

  @property
  def labels(self) -> np.ndarray:
    """Labels of the records, int32 [n]."""
    return self._labels.array

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: SupportsIndex) -> Record:
    label = int(self._labels[operator.index(index)])
    image = self._images[self._row(index)][self._column][0].as_py()
    content, path = image["bytes"], image["path"] or ""
    if content is not None:
      check_content(content, path or ".gif")  # Without a name, it has no other.
    elif path:
      content = read_image(os.path.join(self._folder, path), self._max_pixels)
    else:
      raise ImageError("there is neither an image nor a path of one")
    return {"image": content, "label": label}

  def _row(self, index: SupportsIndex) -> int:
    row = range(len(self))[index]
    return row if self._rows is None else int(self._rows[row])

  def name(self, index: SupportsIndex) -> str:
    return f"record {operator.index(index)} of {self._title}"

  def identity(self) -> Identity:
    """Returns what tells these records apart: labels, and sizes of images."""
    images = self._images[:][self._column]
    compute: Any = pc  # Its functions are made at run time.
    sizes = compute.binary_length(compute.struct_field(images, "bytes"))
    sizes = compute.fill_null(sizes, 0).to_numpy().astype("<i8")
    if self._rows is not None:
      sizes = sizes[self._rows.array]
    return identity_of_labels(self.class_names, self._labels.array, sizes)


def split_names(root: str, config_name: str | None) -> list[str]:
  """Returns the splits of a set that have records.

  Args:
    root: path, URL or name of the set, as of `ArrowSource`.
    config_name: name of one of several configurations, or None.
  """
  splits = _load(_local(root), config_name)
  return [str(name) for name, records in splits.items() if len(records)]


def _local(root: str) -> str:
  """Returns the path of a set; of one in a bucket that of its copy."""
  if root.startswith(HUB) or not bucket.is_url(root):
    return root
  return str(fetch_folder(root))


def _load(root: str, config_name: str | None) -> Any:
  """Returns the splits of a set by name, each mapped from disk."""
  try:
    error_of_set = exceptions.DatasetsError
  except ImportError as error:
    raise ValueError(
      f"{root} needs the package datasets: pip install 'flax_resnet[hf]'"
    ) from error
  name, _, revision = root.removeprefix(HUB).partition("@")
  if root.startswith(HUB) and not _REPOSITORY.fullmatch(root.removeprefix(HUB)):
    raise ValueError(
      f"{root!r} cannot be read: use {HUB}owner/name, with @revision if so "
      "wanted"
    )
  if root.startswith(HUB) and os.path.exists(name):
    raise ValueError(
      f"{root} cannot be read here, as datasets would take {name!r} in this "
      "folder for it: start in another folder"
    )
  if not root.startswith(HUB) and not os.path.isdir(root):
    raise FileNotFoundError(
      f"root is {root}, where there is no folder: give the path of one that "
      "holds .parquet or .arrow files"
    )
  try:
    if root.startswith(HUB):
      return datasets.load_dataset(
        name, config_name, revision=revision or None, keep_in_memory=False
      )
    if any(
      os.path.isfile(os.path.join(root, file))
      for file in ("dataset_dict.json", "state.json")
    ):
      loaded = datasets.load_from_disk(root, keep_in_memory=False)
      if isinstance(loaded, datasets.Dataset):
        return {str(loaded.split or "train"): loaded}
      return loaded
    datasets.disable_progress_bars()  # There is nothing to download.
    return datasets.load_dataset(root, config_name, keep_in_memory=False)
  except (error_of_set, OSError, ValueError, LookupError, TypeError) as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(f"{root} cannot be read as a set: {reason}") from error


def _check_folders(root: str) -> None:
  """Raises ValueError where a class would be taken for a split.

  `datasets` takes a folder called "train" for one, and leaves out all others.
  """
  with os.scandir(root) as entries:
    folders = {entry.name for entry in entries if entry.is_dir()}
  splits = sorted(name for name in folders if name.lower() in _SPLIT_FOLDERS)
  others = sorted(name for name in folders - {*splits} if name[0] != ".")
  if splits and others:
    raise ValueError(
      f"{root} holds the folder {splits[0]!r}, which datasets takes for a "
      f"split and leaves out the others ({listing(others)}): use "
      "data.name=folder, or rename it"
    )


def _images(root: str, whole: Any, columns: Columns) -> Any:
  """Returns the column of images, not decoded."""
  name = columns.image_column
  _check_column(root, whole, name, "image_column")
  try:
    images = whole.select_columns([name]).cast_column(
      name, datasets.Image(decode=False)
    )
    images = images.with_format("arrow")
    missing = images[:][name].is_null()
  except (TypeError, ValueError, NotImplementedError) as error:
    raise ValueError(
      f"the column {name!r} of {root} holds no images but "
      f"{whole.features[name]!r:.200}: set image_column to one that does"
    ) from error
  if count := missing.to_numpy().sum():
    first = int(missing.to_numpy().argmax())
    raise ValueError(
      f"{count:,} of {len(whole):,} records of {root} have no image (the first "
      f"is record {first}), as in shards where the ending of names changes: "
      "use data.name=webdataset for these, or leave them out"
    )
  return images


def _labels(
  root: str, whole: Any, columns: Columns
) -> tuple[list[str], list[str], np.ndarray]:
  """Returns names of classes, if given, texts of labels, and which is whose."""
  name = columns.label_column
  _check_column(root, whole, name, "label_column")
  feature = whole.features[name]
  column = whole.select_columns([name]).with_format("arrow")[:][name]
  kind = getattr(feature, "dtype", "")
  of_class = isinstance(feature, datasets.ClassLabel)
  if not of_class and not kind.startswith(
    ("int", "uint", "string", "large_st")
  ):
    raise ValueError(
      f"the column {name!r} of {root} holds no labels but {feature!r:.200}: "
      "set label_column to one of classes, integers or text"
    )
  if "string" in kind:
    codes = Codes()
    each = codes.of(["" if v is None else v for v in column.to_pylist()])
    names, texts = [], list(codes)
    wrong = np.array([not text.strip() for text in texts], bool)[each]
  else:
    each = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    wrong = each < 0
    names = list(feature.names) if of_class else []
    texts = names or [str(n) for n in range(int(each.max(initial=-1)) + 1)]
  if wrong.any():
    row = int(np.argmax(wrong))
    raise ValueError(
      f"record {row} of {whole.split} in {root} has no label: use another "
      "split or label_column"
    )
  return names, texts, each.astype(np.int32)


def _check_column(root: str, whole: Any, name: str, key: str) -> None:
  if name not in whole.features:
    raise ValueError(
      f"{root} has no column {name!r}: it has "
      f"{listing(whole.features, 10) or 'none'}; set {key} to one of them"
    )
