"""The input pipeline beside tf.data's, and beside the step that it feeds.

    pip install tensorflow
    python benchmarks/input_pipeline.py DIR

DIR is an image folder, a folder a class. Images/s from files to uint8 batches
of random crops, sharded over the devices: of this package, and of tf.data with
`decode_and_crop_jpeg` and a bilinear resize, on the same files and cores, in
turn; the ratios are to tf.data with parts drawn as ours. Before it, the same
of copies of the folder that `prepare` writes, beside the folder; with --peers,
which `input_peers.py` describes, the loaders of torchvision, timm, webdataset
and datasets, and tf.data on TFRecord; --make 2000 first writes so many
JPEGs of 500 by 375 pixels to DIR. Then where the
time goes; what a set in memory gives; and what a step of ResNet-18 takes on
batches from the files and on one that stays on the device.
"""

import argparse
from collections.abc import Callable, Generator
import contextlib
import functools
import glob
import itertools
import os
import pathlib
import statistics
import tempfile
import time
from typing import cast

from train_step import versions
from turns import take_turns, Work

SIZE = 224
BATCH = 64
CORES = len(os.sched_getaffinity(0))


def consume(batches) -> Work:
  """Returns what takes so many batches to the devices."""
  import jax

  from flax_resnet import sharding

  mesh = sharding.make_mesh()

  def work(count: int) -> None:
    for batch in itertools.islice(batches, count):
      part = {key: batch[key] for key in ("image", "label")}
      jax.block_until_ready(sharding.shard_batch(part, mesh))

  return work


def open_folder(folder: str, **changes):
  """Returns the folder, cropped at random, as `data.load` gives it.

  Or another set of as many classes, as changes to its section say.
  """
  from flax_resnet import data

  section = {
    "name": "folder",
    "root": folder,
    "data_dir": None,
    "train_split": "train",
    "eval_split": "train",
    "image_size": SIZE,
    "random_resized_crop": True,
    "center_crop_fraction": 0.875,
    "in_memory": False,
    "num_threads": CORES,
    **changes,
  }
  return data.load(section, num_classes=len(next(os.walk(folder))[1]))


def prepare(folder: str, data_dir: str, max_side: int | None) -> dict[str, str]:
  """Writes a prepared copy; returns the keys of `data` that say where it is."""
  from flax_resnet.data import discovery, preparation
  from flax_resnet.data.sources import Columns

  splits = discovery.open_splits("folder", Columns(), root=folder)
  name = f"copy_{max_side or 'whole'}"
  path, _ = preparation.prepare_splits(
    splits,
    name,
    data_dir,
    preparation.Pictures(max_side),
    num_threads=CORES,
  )
  size = sum(file.stat().st_size for file in path.iterdir())
  print(f"  {name}: {size / 2**20:.1f} MiB", flush=True)
  return {"name": name, "data_dir": data_dir}


def ours(folder: str, **changes) -> Work:
  train = open_folder(folder, **changes).train
  return consume(train.train_batches(batch_size=BATCH, seed=0))


def theirs(folder: str, own_parts: bool = False) -> Work:
  """tf.data as TPU trainers write it, for instance Flax's example.

  `sample_distorted_bounding_box` draws the height of a part uniformly, where
  torchvision and this package draw its area so: its parts end higher up, and
  leave more of a file undecoded. By default these are parts as ours, drawn
  beforehand at no cost.
  """
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  import tensorflow as tf

  files = sorted(glob.glob(os.path.join(folder, "*", "*")))

  def draw(image):
    box, size, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(image),
      tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      min_object_covered=0.0,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
    )
    return tf.concat([box[:2], size[:2]], 0)

  def load(path, window):
    image = tf.io.read_file(path)
    if own_parts:
      window = draw(image)
    part = tf.image.decode_and_crop_jpeg(image, window, channels=3)
    resized = tf.image.resize(part, (SIZE, SIZE), "bilinear")
    return tf.cast(resized, tf.uint8), tf.strings.length(image)

  batches = (
    tf.data.Dataset.from_tensor_slices(draw_parts(files, epochs=50))
    .repeat()
    .map(load, num_parallel_calls=CORES)
    .batch(BATCH, drop_remainder=True)
    .prefetch(2)
  )
  pairs = batches.as_numpy_iterator()
  return consume({"image": i, "label": n} for i, n in pairs)


def draw_parts(files: list[str], epochs: int):
  """Returns paths, shuffled anew each epoch, and the part of each to take."""
  import numpy as np
  from PIL import Image

  from flax_resnet.data import crops

  rng = np.random.default_rng(0)
  widths_and_heights = [Image.open(file).size for file in files]
  paths, parts = [], []
  for _ in range(epochs):
    for index in rng.permutation(len(files)):
      width, height = widths_and_heights[index]
      box = crops.random_box(height, width, (0.08, 1), (3 / 4, 4 / 3), rng)
      paths.append(files[index])
      parts.append(box)
  return paths, np.array(parts, np.int32)


def in_memory() -> Work:
  """Digits of 32 x 32, decoded once."""
  from flax_resnet import data

  section = {
    "name": "digits",
    "data_dir": None,
    "train_split": "train",
    "eval_split": "test",
    "image_size": 32,
    "random_resized_crop": False,
    "center_crop_fraction": 1.0,
    "in_memory": True,
    "num_threads": CORES,
  }
  digits = data.load(section, num_classes=10)
  return consume(digits.train.train_batches(batch_size=BATCH, seed=0))


def stepper(folder: str, real: bool) -> Work:
  """A step of ResNet-18, on batches from the files or on one batch."""
  import jax

  from flax_resnet import sharding
  from flax_resnet.training import load_recipe
  from flax_resnet.training.setup import set_up

  recipe = pathlib.Path(__file__).parents[1] / "configs/folder.py"
  classes = len(next(os.walk(folder))[1])
  config = load_recipe(
    recipe,
    [
      f"data.root={folder}",
      "model.name=resnet18",
      f"model.num_classes={classes}",
      f"data.image_size={SIZE}",
      "data.train_split=train",
      "data.eval_split=train",
      "batch_size=16",
      "num_steps=1000000",
      f"data.num_threads={CORES}",
    ],
  )
  run = set_up(config.to_dict(), sharding.make_mesh(jax.devices()[:1]))
  state = sharding.replicate(run.drawn_state(), run.mesh)
  inputs = run.train_inputs(0)
  if not real:
    inputs = itertools.repeat(next(inputs))

  def work(count: int) -> None:
    nonlocal state
    for _ in range(count):
      state = run.train_step(state, next(inputs)[0])
    jax.block_until_ready(state)

  return work


def parts(folder: str) -> dict[str, float]:
  """Returns the milliseconds of an image's parts, on one core."""
  import numpy as np
  import simplejpeg

  from flax_resnet.data import crops, decoding, order

  split = open_folder(folder).train
  count = min(len(split), 200)
  records = [split.source[i]["image"] for i in range(count)]
  pictures = [decoding.LazyImage(record, 3) for record in records]
  rngs = [np.random.default_rng(i) for i in range(count)]
  crop = crops.random_resized_crop(3, SIZE)
  buffer = np.empty(max(p.height * p.width * 3 for p in pictures), np.uint8)
  full = {"buffer": buffer}
  # Of each block only the mean: what is left is reading the file's codes.
  means = {**full, "min_factor": 8, "min_height": 1, "min_width": 1}
  decode = simplejpeg.decode_jpeg
  return {
    "read the file": each(lambda i: split.source[i], count),
    "find the frame": each(lambda i: decoding.LazyImage(records[i], 3), count),
    "random numbers": each(lambda i: order.generator(0, i), count),
    "decode and resize the part": each(
      lambda i: crop(records[i], rngs[i]), count
    ),
    "(decode all of it)": each(lambda i: decode(records[i], **full), count),
    "(its Huffman codes alone)": each(
      lambda i: decode(records[i], **means), count
    ),
  }


def each(function: Callable[[int], object], count: int) -> float:
  """Returns the milliseconds of processor time of a call: median of 5."""
  times = []
  for _ in range(5):
    start = time.thread_time()
    for index in range(count):
      function(index)
    times.append((time.thread_time() - start) / count * 1000)
  return statistics.median(times)


def show(
  makers, flags, scale: float, unit: str, processor: bool = False
) -> None:
  results = take_turns(makers, flags.rounds, flags.seconds)
  first = next(iter(results.values()))
  for name, result in results.items():
    if result.error:
      print(f"  {name:32} {result.error}")
      continue
    rates = [scale * rate for rate in result.rates]
    used = statistics.median(result.processor)
    print(
      f"  {name:32} {scale * result.median:9,.1f} {unit} "
      f"({min(rates):,.1f} to {max(rates):,.1f})"
      + (f"  {result.ratio(first):.2f}" if first.rates else "")
      + (f"  {1000 / scale * used:.2f} ms of processor" if processor else ""),
      flush=True,
    )


def show_prepared(flags) -> None:
  """Prints how fast the folder is, and copies of it."""
  print(
    f"from a folder or its copy to batches of {BATCH} crops of {SIZE} pixels"
  )
  with tempfile.TemporaryDirectory() as data_dir:
    sets = {"the folder": {}}
    for max_side in (None, 500, 400, 300):
      title = f"prepared, longer side {max_side or 'as it is'}"
      sets[title] = prepare(flags.folder, data_dir, max_side)
    makers = {
      title: functools.partial(ours, flags.folder, **where)
      for title, where in sets.items()
    }
    show(makers, flags, BATCH, "images/s")
    print("milliseconds of processor time for an image, all threads together")
    for title, milliseconds in processor_times(flags.folder, sets).items():
      print(f"  {title:32} {milliseconds:9.3f}")


def show_peers(flags) -> None:
  """Prints how fast others read the same files, each in the form it likes."""
  import input_peers

  with tempfile.TemporaryDirectory() as scratch:
    os.environ["HF_HOME"] = f"{scratch}/huggingface"
    os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
    for form, makers in input_peers.groups(flags.folder, scratch).items():
      print(f"from {form} to batches of {BATCH} crops of {SIZE} pixels")
      show(makers, flags, BATCH, "images/s", processor=True)


def processor_times(folder: str, sets) -> dict[str, float]:
  """Returns the milliseconds of an image of each set: medians of 5 turns."""
  splits = {
    title: open_folder(folder, **where).train for title, where in sets.items()
  }
  times = {title: [] for title in sets}
  for _ in range(5):
    for title, split in splits.items():
      # Closed before the turn of the next: what reads ahead counts as well.
      batches = split.train_batches(batch_size=BATCH, seed=0)
      with contextlib.closing(cast(Generator, batches)):
        next(batches)
        start = time.process_time()
        for _ in range(5):
          next(batches)
        used = time.process_time() - start
      times[title].append(used / (5 * BATCH) * 1000)
  return {title: statistics.median(each) for title, each in times.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", metavar="DIR")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=4)
  parser.add_argument(
    "--step", action="store_true", help="only the step of ResNet-18"
  )
  parser.add_argument(
    "--prepared",
    action="store_true",
    help="only the folder beside its prepared copies",
  )
  parser.add_argument(
    "--peers", action="store_true", help="only the loaders of other packages"
  )
  parser.add_argument(
    "--make",
    type=int,
    metavar="N",
    help="write so many JPEGs to DIR, which must be new",
  )
  flags = parser.parse_args()
  if flags.make:
    import input_peers

    os.makedirs(flags.folder)
    input_peers.make_folder(pathlib.Path(flags.folder), flags.make)
  print(f"{versions()}, {CORES} cores")
  if flags.peers:
    show_peers(flags)
    return
  if not flags.step:
    show_prepared(flags)
  if flags.prepared:
    return
  if not flags.step:
    print(f"from files to batches of {BATCH} crops of {SIZE} pixels")
    show(
      {
        "tf.data": functools.partial(theirs, flags.folder),
        "tf.data, parts its own way": functools.partial(
          theirs, flags.folder, own_parts=True
        ),
        "flax_resnet": functools.partial(ours, flags.folder),
      },
      flags,
      BATCH,
      "images/s",
    )
    print("milliseconds of one core for an image")
    for name, milliseconds in parts(flags.folder).items():
      print(f"  {name:32} {milliseconds:9.3f}")
    print(f"from memory to batches of {BATCH} images of 32 pixels")
    show({"flax_resnet": in_memory}, flags, BATCH, "images/s")
  print("a training step of ResNet-18, batches of 16 images of 224 pixels")
  show(
    {
      "one batch on the device": functools.partial(
        stepper, flags.folder, False
      ),
      "batches from files": functools.partial(stepper, flags.folder, True),
    },
    flags,
    16,
    "images/s",
  )


if __name__ == "__main__":
  main()
