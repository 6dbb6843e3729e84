"""Opening a data set by its name."""

from collections.abc import Sequence
import math
from typing import Literal

from flax_resnet.data import pipeline, policies, transforms
from flax_resnet.data.catalogue import Place
from flax_resnet.data.datasets import Dataset, Split
from flax_resnet.data.decoding import MAX_PIXELS
from flax_resnet.data.reading import RecordReader

OnError = Literal["stop", "skip"]


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
  num_workers: int = 0,
  root: str | None = None,
  split_seed: int = 0,
  on_error: OnError = "stop",
  eval_image_size: int | None = None,
  early_image_sizes: Sequence[Sequence[float]] = (),
  crop_scale: Sequence[float] = (0.08, 1.0),
  policy: policies.PolicyName | None = None,
  policy_magnitude: float | None = None,
  policy_magnitude_std: float = 0.0,
  policy_num_ops: int | None = None,
  repeated_augmentation: int = 1,
) -> Dataset:
  """Opens a data set.

  Args:
    name: "folder" for a folder of images, see `FolderSource`; "npz" for arrays,
      see `open_npz`; "digits" (prepared at its first use); "synthetic"; or the
      name of a TFDS image-classification set that is prepared as array_record.
    data_dir: Where TFDS sets are; None for TFDS's own default.
    train_split: In TFDS's notation: "train", "train[:90%]".
    eval_split: Likewise.
    image_size: Height and width that images are brought to in training.
    random_resized_crop: Train on random parts of the images, as on ImageNet;
      else on all of them.
    center_crop_fraction: Evaluate on this central share of the short side.
    in_memory: Decode all images once and keep them; for small sets.
    num_threads: How many threads read, in each process that does; 0 to read
      when a batch is asked for.
    num_classes: Of the network; what the data set has must be the same.
    num_workers: Processes that read beside this one; 0 for none.
    root: The folder, or the .npz file.
    split_seed: Of the order of a folder that parts of it are taken of.
    on_error: What to do about a broken image: "stop" with its name; or "skip":
      train on the next one in its place, evaluate without it.
    eval_image_size: That of evaluation; None for `image_size`. Random parts
      show things larger than they are, so that a network trained on few pixels
      is best tested on more (Touvron et al. 2019, arXiv:1906.06423).
    early_image_sizes: Pairs (until, size): until this share of the run, train
      on images of this size, which costs less; `image_size` is the last one.
    crop_scale: Range of a random part's share of the area.
    policy: Random operations after the crop, see `policies.make_policy`; None
      for none.
    policy_magnitude: See there.
    policy_magnitude_std: See there.
    policy_num_ops: See there.
    repeated_augmentation: How often an image is in a batch, see
      `order.Order`.

  Raises:
    ValueError: For a name, split or number that cannot be.
    FileNotFoundError: When the set is not there.
  """
  _check(
    image_size=image_size,
    eval_image_size=eval_image_size,
    early_image_sizes=early_image_sizes,
    center_crop_fraction=center_crop_fraction,
    crop_scale=crop_scale,
    num_threads=num_threads,
    num_workers=num_workers,
  )
  where = Place(name, data_dir, root, split_seed, strict=on_error == "stop")
  train = where.open(train_split, image_size, num_classes)
  evaluation = where.open(
    eval_split, image_size, num_classes, tuple(train.class_names)
  )
  if len(train.class_names) != num_classes:
    raise ValueError(
      f"data set {name!r} has {len(train.class_names)} classes and the model "
      f"{num_classes}: set config.model.num_classes to "
      f"{len(train.class_names)}"
    )
  channels = train.channels
  eval_size = eval_image_size or image_size
  part = transforms.center_crop(channels, eval_size, center_crop_fraction)
  distort = policies.make_policy(
    policy,
    channels=channels,
    magnitude=policy_magnitude,
    magnitude_std=policy_magnitude_std,
    num_ops=policy_num_ops,
  )
  skip = on_error == "skip"

  def training(size: int) -> RecordReader:
    cut = transforms.center_crop(channels, size)
    if random_resized_crop:
      low, high = crop_scale
      cut = transforms.random_resized_crop(channels, size, (low, high))
    return RecordReader(
      train,
      transforms.then(cut, distort) if distort else cut,
      (size, size, channels),
      "replace" if skip else "stop",
    )

  workers = pipeline.Workers(num_threads, num_workers)
  splits = [
    Split(
      train,
      training(image_size),
      workers,
      random=bool(random_resized_crop or distort or early_image_sizes),
      early=tuple(
        (until, training(int(size))) for until, size in early_image_sizes
      ),
      copies=repeated_augmentation,
      skips=skip,
    ),
    Split(
      evaluation,
      RecordReader(
        evaluation,
        part,
        (eval_size, eval_size, channels),
        "leave_out" if skip else "stop",
      ),
      workers,
      skips=skip,
    ),
  ]
  if in_memory:
    splits = [split.in_memory() for split in splits]
  return Dataset(
    *splits,
    image_shape=(image_size, image_size, channels),
    class_names=train.class_names,
  )


def _check(
  *,
  image_size: int,
  eval_image_size: int | None,
  early_image_sizes: Sequence[Sequence[float]],
  center_crop_fraction: float,
  crop_scale: Sequence[float],
  **counts: int,
) -> None:
  largest = math.isqrt(MAX_PIXELS)
  if not 1 <= image_size <= largest:
    raise ValueError(f"image_size is {image_size}: use 1 to {largest:,}")
  if eval_image_size is not None and not 1 <= eval_image_size <= largest:
    raise ValueError(
      f"eval_image_size is {eval_image_size}: use 1 to {largest:,}, or None"
    )
  before, sizes = 0.0, range(1, largest + 1)
  for pair in early_image_sizes:
    if len(pair) != 2 or not before < pair[0] < 1 or pair[1] not in sizes:
      raise ValueError(
        f"early_image_sizes is {early_image_sizes}: use pairs of a share of "
        "the run, each larger than the one before, and a whole size"
      )
    before = pair[0]
  if not 0.001 <= center_crop_fraction <= 1:
    raise ValueError(
      f"center_crop_fraction is {center_crop_fraction}: use 0.001 to 1"
    )
  if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
    raise ValueError(
      f"crop_scale is {tuple(crop_scale)}: use two numbers above 0, up to 1, "
      "the smaller first"
    )
  for name, count in counts.items():
    if not 0 <= count <= 256:
      raise ValueError(f"{name} is {count}: use 0 to 256")
