"""A data set by name: its records, what is done to them, its batches."""

from collections.abc import Iterator, Sequence
import dataclasses
import os

import numpy as np

from flax_resnet.data import pipeline, sources, transforms

# Examples of the synthetic set.
SYNTHETIC_SPLITS = {"train": 1024, "test": 256}


@dataclasses.dataclass(frozen=True)
class Split:
  """Records and what is done to each on the host.

  Attributes:
    source: The records.
    transform: What is done to each image.
    num_threads: How many batches are made at the same time.
    random: Whether the transform gives another image each time.
  """

  source: sources.Source
  transform: transforms.Transform
  num_threads: int
  random: bool = False

  def __len__(self) -> int:
    return len(self.source)

  def train_batches(self, **where) -> Iterator[pipeline.Batch]:
    """See `pipeline.train_batches`."""
    return pipeline.train_batches(
      self.source, self.transform, num_threads=self.num_threads, **where
    )

  def train_indices(self, **where) -> Iterator[np.ndarray]:
    """See `pipeline.train_indices`."""
    return pipeline.train_indices(len(self.source), **where)

  def arrays(self) -> pipeline.Batch:
    """Returns all records as one batch, in the order of their indices.

    Raises:
      ValueError: When the transform gives another image each time.
    """
    if self.random:
      raise ValueError("random_resized_crop makes another image each time")
    whole = pipeline.eval_batches(
      self.source, self.transform, batch_size=len(self), num_threads=1
    )
    return next(whole)

  def eval_batches(self, **where) -> Iterator[pipeline.Batch]:
    """See `pipeline.eval_batches`."""
    return pipeline.eval_batches(
      self.source, self.transform, num_threads=self.num_threads, **where
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What `load` returns.

  Attributes:
    train: The split to train on.
    eval: The split to evaluate on.
    image_shape: [h, w, c] of every image.
    class_names: By label.
  """

  train: Split
  eval: Split
  image_shape: tuple[int, int, int]
  class_names: Sequence[str]


def load(
  *,
  name: str,
  data_dir: str | None,
  train_split: str,
  eval_split: str,
  image_size: int,
  random_resized_crop: bool,
  center_crop_fraction: float,
  in_memory: bool,
  num_threads: int,
  num_classes: int,
) -> Dataset:
  """Opens a data set.

  Args:
    name: "digits" (prepared at its first use), "synthetic", or the name of a
      TFDS image-classification set that is prepared as array_record.
    data_dir: Where TFDS sets are; None for TFDS's own default.
    train_split: In TFDS's notation: "train", "train[:90%]".
    eval_split: Likewise.
    image_size: Height and width that images are brought to.
    random_resized_crop: Train on random parts of the images, as on ImageNet;
      else on all of them.
    center_crop_fraction: Evaluate on this central share of the short side.
    in_memory: Decode all images once and keep them; for small sets.
    num_threads: How many batches are made at the same time.
    num_classes: Of the network; what the data set has must be the same.

  Raises:
    ValueError: For a name, split or number that cannot be.
    FileNotFoundError: When the set is not prepared.
  """
  if image_size < 1:
    raise ValueError(f"image_size is {image_size}: use 1 or more")
  if not 0 < center_crop_fraction <= 1:
    raise ValueError(
      f"center_crop_fraction is {center_crop_fraction}: use more than 0, at "
      "most 1"
    )
  if num_threads < 1:
    raise ValueError(f"num_threads is {num_threads}: use 1 or more")
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  train, evaluation = (
    _open(name, split, data_dir, image_size, num_classes, in_memory)
    for split in (train_split, eval_split)
  )
  if len(train.class_names) != num_classes:
    raise ValueError(
      f"data set {name!r} has {len(train.class_names)} classes and the model "
      f"{num_classes}: set config.model.num_classes to "
      f"{len(train.class_names)}"
    )
  whole = transforms.center_crop(train.channels, image_size)
  return Dataset(
    train=Split(
      train,
      transforms.random_resized_crop(train.channels, image_size)
      if random_resized_crop
      else whole,
      num_threads,
      random=random_resized_crop,
    ),
    eval=Split(
      evaluation,
      transforms.center_crop(train.channels, image_size, center_crop_fraction),
      num_threads,
    ),
    image_shape=(image_size, image_size, train.channels),
    class_names=train.class_names,
  )


def _open(
  name: str,
  split: str,
  data_dir: str | None,
  image_size: int,
  num_classes: int,
  in_memory: bool,
) -> sources.Source:
  if name == "synthetic":
    if split not in SYNTHETIC_SPLITS:
      raise ValueError(
        f"data set 'synthetic' has no split {split!r}: use one of "
        f"{', '.join(SYNTHETIC_SPLITS)}"
      )
    source = sources.SyntheticSource(
      SYNTHETIC_SPLITS[split], image_size, num_classes
    )
  else:
    if name == "digits":
      from flax_resnet.data import digits

      digits.prepare(data_dir)
    source = sources.TFDSSource(name, split, data_dir)
  return sources.InMemory(source) if in_memory else source
