"""A data set: its records, what is done to them, its batches."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import os
from typing import Annotated, Any, Literal

from etils import epy
import numpy as np

from flax_resnet import bucket
from flax_resnet.data import crops, pipeline, sources
from flax_resnet.data.arrow import ArrowSource, HUB
from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.identity import check_unchanged, Identity, identity
from flax_resnet.data.manifest import ManifestSource
from flax_resnet.data.order import HostShard, Order
from flax_resnet.data.pipeline import (
  ArrayReader,
  Batch,
  Reader,
  ReadOptions,
  RecordReader,
)
from flax_resnet.data.policies import make_policy, Policy
from flax_resnet.data.sources import Columns, OnError, Source
from flax_resnet.data.webdataset import WebDatasetSource
from flax_resnet.errors import reported_as
from flax_resnet.schema import (
  arguments,
  Count,
  height_and_width,
  ImageSize,
  Interpolation,
  MAX_IMAGE_SIZE,
  Range,
)

with epy.lazy_imports():  # Slow to import, and not every data set needs it.
  from flax_resnet.data import tfds

MaxPixels = Annotated[int, Range(minimum=1)]
Place = Annotated[str, bucket.LOCATION]


class SkipCounter:
  """Counts the broken images that were skipped."""

  def __init__(self):
    self._count = 0

  def add(self, count: int) -> None:
    self._count += count

  def take(self) -> int:
    """Returns how many there were since the last call."""
    count, self._count = self._count, 0
    return count


@dataclasses.dataclass(frozen=True)
class Split:
  """Records and what is done to each on the host.

  Attributes:
    source: the records.
    reader: reader that transforms them.
    options: threads and processes that read ahead.
    random: whether a record becomes another image each time.
    early: readers of the start of a run, in order: (share of the run until
      which, reader).
    repeats: times that a record is in a batch of training.
    balanced: labels of the records, for classes that are trained on equally
      often; None (default) for records that are.
    on_error: "stop" at a broken image, or "skip" it.
    skipped: counter of the broken images that were skipped.
  """

  source: Source
  reader: Reader
  options: ReadOptions
  random: bool = False
  early: Sequence[tuple[float, RecordReader]] = ()
  repeats: int = 1
  balanced: np.ndarray | None = None
  on_error: OnError = "stop"
  skipped: SkipCounter = dataclasses.field(default_factory=SkipCounter)

  def __len__(self) -> int:
    return len(self.source)

  @property
  def skips(self) -> bool:
    """Whether broken images are skipped."""
    return self.on_error == "skip"

  def check(self, batch_size: int) -> None:
    """Raises ValueError unless batches of this size can be filled."""
    Order(len(self), 0, batch_size, self.repeats)

  def train_batches(
    self, *, seed: int, num_steps: int = 0, **shard: int
  ) -> Iterator[Batch]:
    """Yields the batches of `pipeline.train_batches`.

    Args:
      seed: seed of the order and of the transforms' random numbers.
      num_steps: steps of the whole run, which say where `early` ends; default
        0, for nothing early.
      **shard: fields of `HostShard`.
    """
    whole = HostShard(**shard)
    for reader, first, end in self._readers(whole.first_step, num_steps):
      batches = pipeline.train_batches(
        reader,
        dataclasses.replace(whole, first_step=first),
        seed=seed,
        repeats=self.repeats,
        labels=self.balanced,
        options=self.options,
      )
      count = None if end is None else end - first
      yield from self._counted(itertools.islice(batches, count))

  def _readers(
    self, first_step: int, num_steps: int
  ) -> Iterator[tuple[Reader, int, int | None]]:
    """Yields each reader with its first step and the one after its last."""
    for until, reader in self.early:
      if first_step < (end := round(until * num_steps)):
        yield reader, first_step, end
        first_step = end
    yield self.reader, first_step, None

  def train_indices(self, *, seed: int, **shard: int) -> Iterator[np.ndarray]:
    """Yields the records' indices of each of `train_batches`, int32 [b]."""
    rows = HostShard(**shard)
    order = Order(len(self), seed, rows.batch_size, self.repeats, self.balanced)
    for start in itertools.count(step=rows.rows):
      yield order(rows.positions(start, rows.rows))

  def eval_batches(self, **shard: int) -> Iterator[Batch]:
    """Yields the batches of `pipeline.eval_batches`.

    Args:
      **shard: fields of `HostShard`.
    """
    batches = pipeline.eval_batches(
      self.reader, HostShard(**shard), options=self.options
    )
    return self._counted(batches)

  def arrays(self) -> Batch:
    """Returns all records as one batch, in the order of their indices.

    Raises:
      ValueError: if the transform gives another image each time.
    """
    if self.random:
      raise ValueError("random crops and policies make another image each time")
    return next(self.eval_batches(batch_size=len(self)))

  def in_memory(self) -> "Split":
    """Returns the same split, read once; its images must not be random."""
    shard = HostShard(batch_size=len(self))
    whole = next(
      pipeline.eval_batches(self.reader, shard, options=self.options)
    )
    source = sources.ArraySource(
      whole["image"], whole["label"], self.source.class_names
    )
    reader = ArrayReader(source, whole["mask"], whole["broken"])
    return dataclasses.replace(self, source=source, reader=reader)

  def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
      self.skipped.add(int(batch.pop("broken").sum()))
      yield batch


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set, as `load` returns it.

  Attributes:
    train: split to train on.
    eval: split to evaluate on.
    identity: what tells the records of both apart from other data.
  """

  train: Split
  eval: Split
  identity: Mapping[str, Identity]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """[h, w, c] of every image that is trained on."""
    height, width, channels = self.train.reader.image_shape
    return height, width, channels

  @property
  def class_names(self) -> Sequence[str]:
    """Names of the classes, by label."""
    return self.train.source.class_names

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several labels."""
    return sources.is_multi_label(self.train.source)

  def class_counts(self) -> list[int]:
    """Returns the number of records to train on of each class, by label."""
    labels = sources.labels_of(self.train.source)
    if labels.ndim == 2:
      return labels.sum(0, dtype=int).tolist()
    return np.bincount(labels, minlength=len(self.class_names)).tolist()


def load(section: Mapping[str, Any], *, num_classes: int | None) -> Dataset:
  """Opens the data set that a recipe describes.

  Args:
    section: section `data` of a config: its keys are the keyword arguments of
      the functions in `SECTION`, which describe them.
    num_classes: classes of the network; the data set must have as many. None
      for those of the data set.

  Raises:
    InputError: for a key or a value that cannot be, and for a data set that is
      not there or has other classes.
  """
  for_source, for_columns, for_policy, for_reading, for_train, for_eval, _ = (
    arguments("config.data", section, *SECTION, given=_GIVEN)
  )
  with reported_as("config.data"):
    columns = Columns(**for_columns)
    train = open_source("train", num_classes, (), columns, **for_source)
    names = train.class_names
    evaluation = open_source("eval", num_classes, names, columns, **for_source)
    if num_classes not in (None, len(names)):
      raise ValueError(
        f"data set {for_source['name']!r} has {len(names)} classes and the "
        f"model {num_classes}: set config.model.num_classes to {len(names)}"
      )
    if sources.is_multi_label(train) != sources.is_multi_label(evaluation):
      raise ValueError(
        "the images of one split have one label each and those of the other "
        "several: use data of one kind"
      )
    operations = make_policy(num_channels=train.channels, **for_policy)
    options = ReadOptions(**for_reading)
    return Dataset(
      make_train_split(train, operations, options, **for_train),
      make_eval_split(evaluation, options, **for_eval),
      {"train": identity(train), "eval": identity(evaluation)},
    )


def load_eval(
  section: Mapping[str, Any],
  *,
  num_classes: int,
  class_names: Sequence[str] = (),
) -> Split:
  """Opens the evaluation split of a data set; there need be no other.

  Args:
    section: section `data` of a config, as in `load`.
    num_classes: classes of the network, for synthetic data.
    class_names: names of the classes by label, of a set that has no list of
      them; by default those of the training split, if it is there, or else of
      this one.

  Raises:
    InputError: as `load` does.
  """
  for_source, for_columns, _, for_reading, _, for_eval, _ = arguments(
    "config.data", section, *SECTION, given=_GIVEN
  )
  columns = Columns(**for_columns)
  if _is_named_by_training(for_source["name"]) and not class_names:
    with contextlib.suppress(OSError, ValueError):
      class_names = open_source(
        "train", None, (), columns, **for_source
      ).class_names
  with reported_as("config.data"):
    source = open_source(
      "eval", num_classes, class_names, columns, **for_source
    )
    return make_eval_split(source, ReadOptions(**for_reading), **for_eval)


# Data sets that lie where `root` says; those of the others are elsewhere.
_WITH_ROOT = ("folder", "manifest", "webdataset", "parquet", "npz")
# Those that are read from a bucket; the others are copied by hand.
_IN_BUCKETS = ("webdataset", "parquet")


def _is_named_by_training(name: str) -> bool:
  """Returns whether the training split says what the classes are."""
  return name in _WITH_ROOT[:-1] or name.startswith(HUB)


# Arguments of the functions in `SECTION` that are not keys of a config.
_GIVEN = (
  *("part", "num_classes", "class_names", "columns", "source", "operations"),
  *("options", "num_channels", "interpolation", "fill", "before", "now"),
)


def open_source(
  part: Literal["train", "eval"],
  num_classes: int | None,
  class_names: Sequence[str],
  columns: Columns,
  *,
  name: str,
  train_split: str,
  eval_split: str,
  image_size: ImageSize,
  data_dir: Place | None = None,
  root: Place | None = None,
  channels: Literal[1, 3] | None = None,
  split_seed: Annotated[int, Range(minimum=0)] = 0,
  on_error: OnError = "stop",
  max_pixels: MaxPixels = MAX_PIXELS,
) -> Source:
  """Returns the records to train on, or those to evaluate on.

  Args:
    part: "train" for those of `train_split`, "eval" for those of `eval_split`.
    num_classes: number of classes of synthetic images.
    class_names: names of the classes, by label, of a set that has no list of
      them; none for those of its folders or labels.
    columns: names of the columns of a table.
    name: "folder" for a folder of images, see `FolderSource`; "manifest" for a
      table of paths and labels, see `ManifestSource`; "webdataset" for tar
      files, see `WebDatasetSource`; "parquet" for a folder of parquet or Arrow
      files and "hf-hub:OWNER/NAME" for a set of the Hugging Face hub, see
      `ArrowSource`; "npz" for arrays, see `open_npz`; "digits", which is
      prepared at its first use; "synthetic"; or the name of a TFDS
      image-classification set that is prepared as array_record.
    train_split: split to train on, in the notation of TFDS: "train",
      "train[:90%]".
    eval_split: split to evaluate on, in the same notation.
    image_size: height and width of synthetic images in pixels, one number or
      both.
    data_dir: folder of TFDS sets; None (default) for TFDS's own default.
    root: path of the image folder, the manifest, the shards, the folder of
      parquet files or the .npz file; of shards and parquet files also a gs://
      or s3:// URL.
    channels: channels that encoded images are decoded to, 1 for gray or 3 for
      RGB; None (default) for RGB, and for what a TFDS set or arrays have.
    split_seed: seed of the order that parts of such a set are taken of, but not
      of arrays; default 0.
    on_error: "stop" (default) at a class that has no image in its folder, or at
      a file of a manifest that is not there, or "skip" to go without.
    max_pixels: largest number of pixels of an image; default 89,478,485, which
      is Pillow's: a larger one may be a file that is made to fill the memory.

  Raises:
    ValueError: for a name or split that cannot be.
    FileNotFoundError: if the set is not there.
  """
  _check_is_local("data_dir", data_dir, name)
  if name in _WITH_ROOT and name not in _IN_BUCKETS:
    _check_is_local("root", root, name)
  data_dir = data_dir and os.path.expanduser(data_dir)
  if name == "digits":
    tfds.prepare_digits(data_dir)
  split = train_split if part == "train" else eval_split
  if name == "synthetic":
    if num_classes is None:
      raise ValueError(
        "synthetic images have as many classes as the network: set "
        "config.model.num_classes"
      )
    return sources.open_synthetic(split, image_size, num_classes)
  if channels is not None and not _is_named_by_training(name):
    raise ValueError(
      f"channels is {channels}, and the images of {name} have theirs: leave it "
      "out"
    )
  if name.startswith(HUB):
    root = name
  elif name not in _WITH_ROOT:
    return tfds.TFDSSource(name, split, data_dir)
  if root is None:
    raise ValueError(
      f"root is None: give where the {name} is, --config.data.root=…"
    )
  if name == "npz":
    return sources.open_npz(root, split)
  common = {
    "seed": split_seed,
    "class_names": class_names,
    "max_pixels": max_pixels,
  }
  if name == "folder":
    source = FolderSource(root, split, on_error=on_error, **common)
  elif name == "manifest":
    source = ManifestSource(root, split, columns, on_error=on_error, **common)
  elif name == "webdataset":
    source = WebDatasetSource(root, split, columns, **common)
  else:
    source = ArrowSource(root, split, columns, **common)
  source.channels = channels or source.channels
  return source


def _check_is_local(key: str, place: str | None, name: str) -> None:
  """Raises ValueError for a URL where only files of this machine are read."""
  if place is None or not bucket.is_url(place):
    return
  is_file = name == "npz"
  if name == "manifest":  # And the images beside it.
    place = place.rpartition("/")[0]
  raise ValueError(
    f"{key} is {place}, and data of the kind {name!r} are read from a disk of "
    f"this machine: copy them, {bucket.copy_command(place, is_file=is_file)!r}"
    f", and set {key} to the copy; from a bucket, tar shards (webdataset) and "
    "parquet are read"
  )


def make_train_split(
  source: Source,
  operations: Policy | None,
  options: ReadOptions,
  *,
  image_size: ImageSize,
  early_image_sizes: Sequence[Sequence[float | Sequence[int]]] = (),
  random_resized_crop: bool = False,
  crop_scale: Sequence[Annotated[float, Range(above=0, maximum=1)]] = (0.08, 1),
  repeated_augmentation: Count = 1,
  balanced_sampling: bool = False,
  on_error: OnError = "stop",
  max_pixels: MaxPixels = MAX_PIXELS,
  in_memory: bool = False,
) -> Split:
  """Returns the split to train on.

  Args:
    source: the records.
    operations: random operations after the crop, or None.
    options: threads and processes that read ahead.
    image_size: height and width of the images in pixels: one number if they are
      equal, or both.
    early_image_sizes: pairs (until, size): until this share of the run, train
      on images of this size, which costs less; `image_size` is the last one.
      Default ().
    random_resized_crop: whether to train on random parts of the images, as on
      ImageNet, instead of their middle; default False.
    crop_scale: range of a random part's share of the area, in (0, 1]; default
      (0.08, 1).
    repeated_augmentation: times that an image is in a batch, see `order.Order`;
      default 1.
    balanced_sampling: whether all classes are trained on equally often, however
      many records they have, see `order.Order`; default False.
    on_error: "stop" (default) at a broken image with its name, or "skip" to
      train on the next one in its place.
    max_pixels: largest number of pixels of an image, see `open_source`.
    in_memory: whether to decode all images once and keep them, for small sets;
      default False.

  Raises:
    ValueError: for sizes or a range that cannot be.
  """
  early = _early_sizes(early_image_sizes)
  if len(crop_scale) != 2 or crop_scale[0] > crop_scale[1]:
    raise ValueError(
      f"crop_scale is {tuple(crop_scale)}: use two numbers, the smaller first"
    )
  low, high = crop_scale

  if balanced_sampling and sources.is_multi_label(source):
    raise ValueError(
      "balanced_sampling is True and images have several labels, so that they "
      "are of no one class: set it to False"
    )
  labels = sources.labels_of(source) if balanced_sampling else None
  random = bool(random_resized_crop or operations or early_image_sizes)
  if in_memory and random:
    source = sources.DecodedSource(source, max_pixels)

  def reader(size: ImageSize) -> RecordReader:
    if random_resized_crop:
      crop = crops.random_resized_crop(
        source.channels, size, (low, high), max_pixels=max_pixels
      )
    else:
      crop = crops.center_crop(source.channels, size, max_pixels=max_pixels)

    def transform(image, rng):
      pixels = crop(image, rng)
      return operations(pixels, rng) if operations else pixels

    shape = (*height_and_width(size), source.channels)
    return RecordReader(source, transform, shape, on_error, replace=True)

  split = Split(
    source,
    reader(image_size),
    options,
    random=random,
    early=[(until, reader(size)) for until, size in early],
    repeats=repeated_augmentation,
    balanced=labels,
    on_error=on_error,
  )
  return split.in_memory() if in_memory and not random else split


def _early_sizes(
  pairs: Sequence[Sequence[float | Sequence[int]]],
) -> list[tuple[float, tuple[int, int]]]:
  """Returns the pairs of `early_image_sizes`, each with height and width.

  Raises:
    ValueError: for what is no such pairs.
  """
  found, before = [], 0.0
  for pair in pairs:
    until, size = pair if len(pair) == 2 else ((), ())
    sides = size if isinstance(size, Sequence) else (size, size)
    if (
      isinstance(until, Sequence)
      or not before < until < 1
      or len(sides) != 2
      or any(side not in range(1, MAX_IMAGE_SIZE + 1) for side in sides)
    ):
      raise ValueError(
        f"early_image_sizes is {pairs}: use pairs of a share of the run, each "
        "larger than the one before, and a whole size, or (height, width)"
      )
    height, width = map(int, sides)
    found.append((until, (height, width)))
    before = until
  return found


def make_eval_split(
  source: Source,
  options: ReadOptions,
  *,
  image_size: ImageSize,
  eval_image_size: ImageSize | None = None,
  center_crop_fraction: Annotated[float, Range(minimum=0.001, maximum=1)] = 1.0,
  eval_interpolation: Interpolation = "bilinear",
  eval_resize_first: bool = False,
  on_error: OnError = "stop",
  max_pixels: MaxPixels = MAX_PIXELS,
  in_memory: bool = False,
) -> Split:
  """Returns the split to evaluate on.

  Args:
    source: the records.
    options: threads and processes that read ahead.
    image_size: height and width of the images that are trained on, in pixels,
      one number or both.
    eval_image_size: height and width of the images; None (default) for
      `image_size`. Random parts show things larger than they are, so that a
      network trained on few pixels is best tested on more (Touvron et al. 2019,
      arXiv:1906.06423).
    center_crop_fraction: share of the short side that is seen, 0.001 to 1, see
      `crops.center_crop`; default 1.
    eval_interpolation: filter of the resize, one of Pillow's; default
      "bilinear".
    eval_resize_first: whether to resize the whole image and not the middle
      alone, which costs more: the very pixels of torchvision and timm, see
      `crops.center_crop`; default False.
    on_error: "stop" (default) at a broken image with its name, or "skip" to
      leave it out.
    max_pixels: largest number of pixels of an image, see `open_source`.
    in_memory: whether to decode all images once and keep them; default False.
  """
  size = eval_image_size or image_size
  crop = crops.center_crop(
    source.channels,
    size,
    center_crop_fraction,
    eval_interpolation,
    max_pixels,
    resize_first=eval_resize_first,
  )
  shape = (*height_and_width(size), source.channels)
  reader = RecordReader(source, crop, shape, on_error)
  split = Split(source, reader, options, on_error=on_error)
  return split.in_memory() if in_memory else split


# The functions whose keyword arguments are the keys of `config.data`.
SECTION = (
  open_source,
  Columns,
  make_policy,
  ReadOptions,
  make_train_split,
  make_eval_split,
  check_unchanged,
)
