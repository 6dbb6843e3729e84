"""Loaders of other packages, for `input_pipeline.py --peers`.

    pip install torch torchvision timm webdataset datasets tensorflow

Each reads the same JPEGs, in the form that it is made for, and gives uint8
batches of random resized crops, scale 0.08 to 1, ratio 3/4 to 4/3, bilinear,
without a flip: here and there on the devices of JAX. Each has as many workers
as there are cores: threads here and in tf.data, processes elsewhere, which stay
from epoch to epoch, read four batches ahead and have a thread each for torch.
What else is the best for each is said at its function.
"""

from collections.abc import Callable, Iterator
import functools
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import tarfile

from input_pipeline import BATCH, consume, CORES, ours, prepare, SIZE
from turns import Work

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SHARDS = 4 * CORES  # Readers of shards divide them among workers.
CLASSES = 10


def make_folder(folder: pathlib.Path, count: int) -> None:
  """Writes JPEGs of 500 by 375 pixels, with edges and noise, of ten classes."""
  import cv2
  import numpy as np
  from PIL import Image

  for number in range(count):
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    pixels = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
    pixels = pixels.astype(np.float32)
    for _ in range(12):
      x, y = rng.integers(0, 450), rng.integers(0, 325)
      width, height = rng.integers(10, 150, 2)
      pixels[y : y + height, x : x + width] += rng.integers(-60, 60, 3)
    pixels += rng.normal(0, 6, pixels.shape)
    path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(path, quality=90)


def _files(folder: str) -> list[tuple[pathlib.Path, int]]:
  """Returns the files of a folder and their labels, in an order that mixes."""
  classes = sorted(p for p in pathlib.Path(folder).iterdir() if p.is_dir())
  found = [
    (path, label)
    for label, each in enumerate(classes)
    for path in sorted(each.iterdir())
  ]
  return sorted(found, key=lambda item: item[0].name[::-1])


def write_shards(folder: str, place: str) -> dict[str, str]:
  """Writes the files as tar shards; returns keys of `data` that read them."""
  files = _files(folder)
  for shard in range(SHARDS):
    with tarfile.open(f"{place}/train-{shard:03}.tar", "w") as tar:
      for path, label in files[shard::SHARDS]:
        for ending, content in (
          ("jpg", path.read_bytes()),
          ("cls", str(label).encode()),
        ):
          info = tarfile.TarInfo(f"{path.parent.name}_{path.stem}.{ending}")
          info.size = len(content)
          tar.addfile(info, io.BytesIO(content))
  return {"name": "webdataset", "root": place}


def write_parquet(folder: str, place: str) -> dict[str, str]:
  """Writes the files as parquet; returns keys of `data` that read them."""
  import datasets

  files = _files(folder)
  names = sorted(path.name for path in pathlib.Path(folder).iterdir())
  features = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=names),
  }
  datasets.Dataset.from_dict(
    {
      "image": [
        {"bytes": path.read_bytes(), "path": path.name} for path, _ in files
      ],
      "label": [label for _, label in files],
    },
    datasets.Features(features),
  ).to_parquet(f"{place}/train.parquet")
  return {"name": "parquet", "root": place}


def write_tfrecord(folder: str, place: str) -> None:
  """Writes the files as TFRecord."""
  tf = _tensorflow()
  files = _files(folder)
  for shard in range(SHARDS):
    with tf.io.TFRecordWriter(f"{place}/train-{shard:03}.tfrecord") as writer:
      for path, label in files[shard::SHARDS]:
        features = {
          "image": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[path.read_bytes()])
          ),
          "label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
          ),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writer.write(example.SerializeToString())


def _tensorflow():
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  return tf


def load_torchvision() -> None:
  """Imports torchvision, if need be one that was built for another torch.

  Such a one has no operators, and is then not imported; none is used here but
  that of `torchvision_v2`, which fails.
  """
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor dets, Tensor scores, float t) -> Tensor")
    _libraries.append(library)  # What it defines goes with it.


_libraries = []


def _pil_transform() -> Callable:
  """Returns the crop of torchvision of a Pillow image, to uint8."""
  load_torchvision()
  from torchvision import transforms

  return transforms.Compose(
    [
      transforms.RandomResizedCrop(SIZE, SCALE, RATIO),
      transforms.PILToTensor(),
    ]
  )


def _torch_batches(loader) -> Work:
  """Takes a DataLoader's batches, epoch after epoch, to the devices."""
  # As a script has it on Linux, and before JAX has threads, which are not there
  # after a fork.
  multiprocessing.set_start_method("fork", force=True)
  first = iter(loader)

  def batches() -> Iterator[dict]:
    for epoch in itertools.chain([first], itertools.repeat(loader)):
      for images, labels in epoch:
        yield {"image": images.numpy(), "label": labels.numpy()}

  return consume(batches())


def _data_loader(dataset, **options) -> Work:
  from torch.utils.data import DataLoader

  return _torch_batches(
    DataLoader(
      dataset,
      BATCH,
      num_workers=CORES,
      prefetch_factor=4,
      persistent_workers=True,
      **{"shuffle": True, "drop_last": True, **options},
    )
  )


def torchvision_pillow(folder: str) -> Work:
  """`ImageFolder`, Pillow's decoder, which decodes a whole picture."""
  transform = _pil_transform()
  from torchvision.datasets import ImageFolder

  return _data_loader(ImageFolder(folder, transform))


def _decode_and_crop(path: str):
  from torchvision import io as vision_io
  from torchvision.transforms import v2

  image = vision_io.decode_image(path, vision_io.ImageReadMode.RGB)
  return v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True)(image)


def torchvision_v2(folder: str) -> Work:
  """`ImageFolder`, libjpeg-turbo into tensors, and `transforms.v2` on uint8."""
  load_torchvision()
  from torchvision.datasets import ImageFolder

  return _data_loader(ImageFolder(folder, loader=_decode_and_crop))


def timm(folder: str) -> Work:
  """`create_loader` with its collation of uint8, less its prefetcher's floats.

  Its augmentation is switched off but for the crop.
  """
  load_torchvision()
  from timm.data import create_dataset, create_loader
  import torch

  dataset = create_dataset("", folder, split="")
  loader = create_loader(
    dataset,
    (3, SIZE, SIZE),
    BATCH,
    is_training=True,
    scale=SCALE,
    ratio=RATIO,
    hflip=0.0,
    color_jitter=None,
    interpolation="bilinear",
    num_workers=CORES,
    use_prefetcher=True,
    persistent_workers=True,
    device=torch.device("cpu"),
  )
  return _torch_batches(loader.loader)


def webdataset(place: str) -> Work:
  """Shards drawn anew without end, a buffer of 1,000, batches in the workers.

  As its documentation has it for training.
  """
  import webdataset as wds

  records = (
    wds.WebDataset(
      sorted(map(str, pathlib.Path(place).glob("*.tar"))),
      resampled=True,
      shardshuffle=False,
      nodesplitter=wds.split_by_node,
    )
    .shuffle(1000)
    .decode("pilrgb")
    .to_tuple("jpg", "cls")
    .map_tuple(_pil_transform())
    .batched(BATCH, partial=False, collation_fn=_collate)
  )
  loader = wds.WebLoader(
    records,
    batch_size=None,
    num_workers=CORES,
    prefetch_factor=4,
    persistent_workers=True,
  )
  return _torch_batches(loader)


def _collate(samples):
  from torch.utils.data import default_collate

  return default_collate(samples)


def _transform_rows(rows, transform):
  images = [transform(image.convert("RGB")) for image in rows["image"]]
  return {"image": images, "label": rows["label"]}


def _rows_collated(rows):
  images, labels = zip(*((r["image"], r["label"]) for r in rows), strict=True)
  return _collate([*zip(images, labels, strict=True)])


def hf_datasets(place: str) -> Work:
  """`datasets`, mapped from disk, its rows taken a batch at a time."""
  import datasets

  rows = datasets.load_dataset("parquet", data_dir=place, split="train")
  transform = functools.partial(_transform_rows, transform=_pil_transform())
  rows = rows.with_transform(transform)
  return _data_loader(rows, collate_fn=_rows_collated)


def tf_records(place: str) -> Work:
  """tf.data on TFRecord: files interleaved, a buffer of 1,000, parts as ours.

  `decode_and_crop_jpeg`, of parts that are drawn as torchvision and this
  package draw them: an area uniform in its share of the picture.
  """
  tf = _tensorflow()

  def draw(shape):
    height, width = (tf.cast(shape[axis], tf.float32) for axis in (0, 1))
    area = height * width * tf.random.uniform([10], *SCALE)
    log_ratio = tf.math.log(RATIO)
    ratio = tf.exp(tf.random.uniform([10], log_ratio[0], log_ratio[1]))
    widths = tf.round(tf.sqrt(area * ratio))
    heights = tf.round(tf.sqrt(area / ratio))
    first = tf.argmax(
      tf.cast((widths <= width) & (heights <= height), tf.int32)
    )
    part_width = tf.minimum(widths[first], width)
    part_height = tf.minimum(heights[first], height)
    top = tf.floor(tf.random.uniform([]) * (height - part_height + 1))
    left = tf.floor(tf.random.uniform([]) * (width - part_width + 1))
    window = tf.stack([top, left, part_height, part_width])
    return tf.cast(window, tf.int32)

  def load(record):
    features = {
      "image": tf.io.FixedLenFeature([], tf.string),
      "label": tf.io.FixedLenFeature([], tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    window = draw(tf.io.extract_jpeg_shape(example["image"]))
    part = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
    resized = tf.image.resize(part, (SIZE, SIZE), "bilinear")
    return tf.cast(resized, tf.uint8), example["label"]

  files = tf.data.Dataset.list_files(f"{place}/*.tfrecord", shuffle=True)
  batches = (
    files.interleave(
      tf.data.TFRecordDataset,
      cycle_length=CORES,
      num_parallel_calls=CORES,
      deterministic=False,
    )
    .shuffle(1000)
    .repeat()
    .map(load, num_parallel_calls=CORES, deterministic=False)
    .batch(BATCH, drop_remainder=True)
    .prefetch(2)
  )
  pairs = batches.as_numpy_iterator()
  return consume({"image": i, "label": n} for i, n in pairs)


def groups(
  folder: str, scratch: str
) -> dict[str, dict[str, Callable[[], Work]]]:
  """Returns the loaders of each form of the files; ours is the last of each."""
  places = {}
  for name in ("tar", "parquet", "tfrecord", "array_record"):
    places[name] = f"{scratch}/{name}"
    os.makedirs(places[name])
  shards = write_shards(folder, places["tar"])
  parquet = write_parquet(folder, places["parquet"])
  write_tfrecord(folder, places["tfrecord"])
  prepared = prepare(folder, places["array_record"], None)
  print(f"  {json.dumps({'files': len(_files(folder)), 'shards': SHARDS})}")
  here = functools.partial
  return {
    "a folder of files": {
      "torchvision + DataLoader, Pillow": here(torchvision_pillow, folder),
      "torchvision.io + transforms.v2": here(torchvision_v2, folder),
      "timm's create_loader": here(timm, folder),
      "flax_resnet": here(ours, folder),
    },
    "tar shards": {
      "webdataset": here(webdataset, places["tar"]),
      "flax_resnet": here(ours, folder, **shards),
    },
    "parquet": {
      "datasets + DataLoader": here(hf_datasets, places["parquet"]),
      "flax_resnet": here(ours, folder, **parquet),
    },
    "records": {
      "tf.data on TFRecord": here(tf_records, places["tfrecord"]),
      "flax_resnet on array_record": here(ours, folder, **prepared),
    },
  }
