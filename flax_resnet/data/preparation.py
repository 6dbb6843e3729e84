"""Any data set, written as one that is quick to read.

Most of the work of reading photographs is decoding pixels that no network sees.
Pictures whose longer side is bounded once, as FFCV does (Leclerc et al. 2023,
arXiv:2306.12517), need a fraction of it. What is written is a prepared set of
TFDS, in the order of the source: a few files of array_record, instead of a file
an image.

A shard is a function of the records in it and the options, and is whole or not
there. So what was stopped goes on, and ends in the same bytes.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
from typing import Annotated, Any, TypeVar
import warnings

import cv2
from etils import epath
import numpy as np
from PIL import Image
import simplejpeg
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, dataset_info, example_serializer
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from flax_resnet import schema, storage
from flax_resnet.data.decoding import LazyImage, MAX_PIXELS
from flax_resnet.data.identity import identity
from flax_resnet.data.sources import is_multi_label, OnError, Source
from flax_resnet.data.tfds import (
  check_can_be_written,
  OTHERS,
  write_errors_reported,
)
from flax_resnet.errors import ImageError, listing
from flax_resnet.schema import Count, Range

try:
  import fcntl
except ImportError:  # Windows; there nothing is locked.
  fcntl = None

T = TypeVar("T")
R = TypeVar("R")

VERSION = "1.0.0"
# What a prepared set was made from, and how; beside its shards.
MADE_FROM = "made_from.json"
# Some 100 MB of photographs of 500 pixels, and what a kill costs at most.
RECORDS_PER_SHARD = 1024
_MAX_JPEG_SIDE = 65_500
_PARTIAL = f"{VERSION}.partial"
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Pictures:
  """What is stored of an image: its file, or a smaller JPEG.

  Attributes:
    max_side: largest length of the longer side in pixels; None (default) for
      any. A longer one becomes this long, by the mean of the pixels that a new
      one covers, and the shorter one in proportion; none is enlarged.
    quality: quality of the JPEGs that are written, 1 to 100; default 90.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.

  Raises:
    ValueError: for a value out of its range.
  """

  max_side: Annotated[int, Range(minimum=1, maximum=_MAX_JPEG_SIDE)] | None = (
    None
  )
  quality: Annotated[int, Range(minimum=1, maximum=100)] = 90
  max_pixels: Count = MAX_PIXELS

  def __post_init__(self):
    schema.check_fields(self)

  def stored(self, image: bytes | np.ndarray, channels: int) -> bytes:
    """Returns what is stored of an image.

    The file itself, unless it is too large; of an array, a PNG.

    Args:
      image: content of an image file, or uint8 [h, w, c].
      channels: 1 for gray, 3 for RGB.

    Raises:
      ImageError: if the image is broken, also one that is stored as it is.
    """
    pixels = LazyImage(image, channels, self.max_pixels).pixels()
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if self.max_side is None or longer <= self.max_side:
      return image if isinstance(image, bytes) else _png(pixels)
    width, height = (
      max(1, round(side * self.max_side / longer)) for side in (width, height)
    )
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(
      small.reshape(height, width, channels),
      quality=self.quality,
      colorspace="GRAY" if channels == 1 else "RGB",
      colorsubsampling="Gray" if channels == 1 else "420",
    )


def _png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  # Of one channel, Pillow takes [h, w] alone.
  gray = pixels.shape[2] == 1
  Image.fromarray(pixels[..., 0] if gray else pixels).save(file, "PNG")
  return file.getvalue()


def prepare_splits(
  splits: Mapping[str, Source],
  name: str,
  data_dir: str | os.PathLike | None,
  pictures: Pictures,
  *,
  on_error: OnError = "stop",
  num_threads: int = 1,
  advance: Callable[[int], object] = lambda count: None,
) -> tuple[pathlib.Path, dict[str, int]]:
  """Writes splits as a prepared set, which `data.name=NAME` then reads.

  Records stay in their order, and classes keep their labels. What another call
  has begun is gone on with, and nothing is done if it has ended.

  Args:
    splits: records by split; all of the same classes.
    name: name of the new set.
    data_dir: folder of prepared sets; None for TFDS's own default.
    pictures: what is stored of each image.
    on_error: "stop" (default) at a broken image with its name, or "skip" to
      leave it out.
    num_threads: threads that decode; default 1.
    advance: function that is called with a number of records that are done.

  Returns:
    The folder of the set, and the number of records of each split.

  Raises:
    ValueError: for a set that cannot be written as such, and one that is there
      already or was begun and is another.
    ImageError: at a broken image.
    OSError: if it cannot be written.
  """
  _check_name(name)
  _check_splits(splits)
  root = pathlib.Path(data_dir or constants.DATA_DIR).expanduser()
  check_can_be_written(str(root))
  made_from = {
    "max_side": pictures.max_side,
    "quality": pictures.quality if pictures.max_side else None,
    "records_per_shard": RECORDS_PER_SHARD,
    "splits": {
      split: dict(identity(source)) for split, source in splits.items()
    },
  }
  whole = root / name / VERSION
  _check_versions(root / name)
  if whole.exists():
    _check_made_from(whole, made_from)
  else:
    partial = root / name / _PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
      if (partial / MADE_FROM).exists():
        _check_made_from(partial, made_from)
      else:
        storage.write_json(partial / MADE_FROM, made_from)
      with futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        for split, source in splits.items():
          writer = _SplitWriter(source, pictures, on_error, pool)
          writer.write(partial, _shards(name, split, len(source)), advance)
      _write_info(partial, name, splits)
      (partial / _LOCK).unlink(missing_ok=True)
      os.rename(partial, whole)
  info = tfds.builder_from_directory(whole).info
  return whole, {k: v.num_examples for k, v in info.splits.items()}


def _check_name(name: str) -> None:
  if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in OTHERS:
    raise ValueError(
      f"the new set cannot be called {name!r}: give it a --name of small "
      "letters, digits and _, which is none of " + ", ".join(OTHERS)
    )


def _check_versions(folder: pathlib.Path) -> None:
  """Raises ValueError for a set of other versions, the newest of which is read.

  Args:
    folder: folder of a set.
  """
  if folder.is_dir():
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    if others := sorted(names - {VERSION, _PARTIAL}):
      raise ValueError(
        f"{folder} is a set already, with {listing(others)}: choose another "
        "--name"
      )


def _check_splits(splits: Mapping[str, Source]) -> None:
  """Raises ValueError for what a prepared set cannot hold."""
  for split, source in splits.items():
    if is_multi_label(source):
      raise ValueError(
        f"the images of {split!r} have several labels each, and those of a "
        "prepared set one: train on them where they are"
      )
    if not re.fullmatch(r"\w+", split):
      raise ValueError(
        f"{split!r} cannot be a split of a prepared set: use letters, digits "
        "and _"
      )
    for class_name in source.class_names:
      if class_name.strip() != class_name or "\n" in class_name:
        raise ValueError(
          f"the class {class_name!r} has spaces at an end or a line break, "
          "which a prepared set cannot hold: rename it"
        )


def _check_made_from(
  folder: pathlib.Path, made_from: Mapping[str, Any]
) -> None:
  """Raises ValueError unless a folder is of the same data and options."""
  try:
    found = storage.read_json(folder / MADE_FROM)
  except (OSError, ValueError):
    found = {}
  if found == json.loads(storage.to_json(made_from)):
    return
  other = "other data"
  for key, flag in (("max_side", "--max-side"), ("quality", "--quality")):
    if key in found and found[key] != made_from[key]:
      other = f"{flag} {found[key]}"
  raise ValueError(
    f"{folder} is there already, from {other}: choose another --name, or "
    "remove it"
  )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder, until the end of this one."""
  with (folder / _LOCK).open("a") as file:
    if fcntl is not None:
      try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except (BlockingIOError, PermissionError) as error:
        raise ValueError(
          f"{folder} is being written by another process: wait for it or stop "
          "it"
        ) from error
      except OSError:
        pass  # A disk that knows no locks.
    yield


def _shards(name: str, split: str, count: int) -> list[str]:
  """Returns the names of the files of a split, as TFDS has them."""
  number = -(-count // RECORDS_PER_SHARD)
  return [
    f"{name}-{split}.array_record-{shard:05d}-of-{number:05d}"
    for shard in range(number)
  ]


class _SplitWriter:
  """Writes the shards of a split.

  Args:
    source: the records.
    pictures: what is stored of each image.
    on_error: "stop" at a broken image, or "skip" it.
    pool: threads that decode.
  """

  def __init__(
    self,
    source: Source,
    pictures: Pictures,
    on_error: OnError,
    pool: futures.ThreadPoolExecutor,
  ):
    self._source, self._pictures = source, pictures
    self._on_error, self._pool = on_error, pool
    # Its type says dict[...] of what is a Mapping[...].
    specs: Any = _features(source).get_serialized_info()
    self._serializer = example_serializer.ExampleSerializer(specs)

  def write(
    self,
    folder: pathlib.Path,
    shards: Sequence[str],
    advance: Callable[[int], object],
  ) -> None:
    """Writes those shards that are not there yet."""
    for number, shard in enumerate(shards):
      first = number * RECORDS_PER_SHARD
      end = min(first + RECORDS_PER_SHARD, len(self._source))
      if (folder / shard).exists():
        advance(end - first)
      else:
        _write_shard(folder / shard, self._records(range(first, end), advance))
    if not any(
      ArrayRecordFileAdapter.num_examples(folder / shard) for shard in shards
    ):
      raise ValueError(
        f"all {len(self._source):,} images of a split are broken: the first is "
        f"{self._source.name(0)}"
      )

  def _records(
    self, indices: Iterable[int], advance: Callable[[int], object]
  ) -> Iterator[bytes]:
    """Yields what is stored of the records, in order."""
    found = _in_order(self._pool, self._record, indices)
    for index, record in zip(indices, found, strict=True):
      if isinstance(record, bytes):
        yield record
      else:
        self._report(f"{self._source.name(index)}: {record}", record)
      advance(1)

  def _report(self, problem: str, error: ImageError) -> None:
    if self._on_error == "stop":
      raise ImageError(
        f"{problem}: mend or remove it, or leave it out by "
        "--config.data.on_error=skip"
      ) from error
    warnings.warn(f"skipped {problem}", stacklevel=2)

  def _record(self, index: int) -> bytes | ImageError:
    try:
      record = self._source[index]
      image = self._pictures.stored(record["image"], self._source.channels)
    except ImageError as error:
      return error
    example = self._serializer.get_tf_example(
      {"image": image, "label": record["label"]}
    )
    # Else the order of the two is another in each process.
    return example.SerializeToString(deterministic=True)


def _in_order(
  pool: futures.ThreadPoolExecutor,
  function: Callable[[T], R],
  items: Iterable[T],
  ahead: int = 64,
) -> Iterator[R]:
  """Yields the results of `function`, of which few are kept at a time."""
  pending: collections.deque[futures.Future[R]] = collections.deque()
  for item in items:
    pending.append(pool.submit(function, item))
    if len(pending) > ahead:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


def _write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
  with storage.replacing(path) as partial, write_errors_reported(path):
    ArrayRecordFileAdapter.write_examples(
      partial, (("", record) for record in records)
    )


def _features(source: Source) -> tfds.features.FeaturesDict:
  image = tfds.features.Image(shape=(None, None, source.channels))
  label = tfds.features.ClassLabel(names=list(source.class_names))
  return tfds.features.FeaturesDict({"image": image, "label": label})


def _write_info(
  folder: pathlib.Path, name: str, splits: Mapping[str, Source]
) -> None:
  """Writes what TFDS says of a set beside its shards."""
  infos = []
  for split, source in splits.items():
    shards = [folder / shard for shard in _shards(name, split, len(source))]
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[
          ArrayRecordFileAdapter.num_examples(shard) for shard in shards
        ],
        num_bytes=sum(shard.stat().st_size for shard in shards),
      )
    )
  info = tfds.core.DatasetInfo(
    builder=dataset_info.DatasetIdentity(
      name=name,
      version=tfds.core.Version(VERSION),
      data_dir=os.fspath(folder),
      module_name=__name__,
    ),
    features=_features(next(iter(splits.values()))),
    supervised_keys=("image", "label"),
    disable_shuffling=True,
  )
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  info.set_splits(tfds.core.SplitDict(infos))
  info.write_to_directory(epath.Path(folder))
