"""Data sets by their section of a recipe: what is done to which images."""

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import crops, order, policies


@pytest.fixture(scope="module")
def section(tmp_path_factory):
  """Sixty images to train on and thirty to evaluate on, of seven classes."""
  path = tmp_path_factory.mktemp("data") / "set.npz"
  images = np.random.default_rng(0).integers(0, 256, (90, 20, 24, 3), np.uint8)
  labels = np.arange(90) % 7
  np.savez(
    path,
    train_images=images[:60],
    train_labels=labels[:60],
    test_images=images[60:],
    test_labels=labels[60:],
  )
  return {
    "name": "npz",
    "root": str(path),
    "train_split": "train",
    "eval_split": "test",
    "image_size": 16,
  }


@pytest.fixture
def load(section):
  def load(num_classes=7, **changes):
    return data.load(section | changes, num_classes=num_classes)

  return load


def first_batch(split):
  return next(split.train_batches(batch_size=50, seed=0))


def test_what_is_not_in_the_section_is_off(load):
  dataset = load()
  assert dataset.image_shape == (16, 16, 3)
  assert dataset.class_names == list("0123456")
  assert not dataset.train.random
  assert not dataset.train.skips
  assert_is(first_batch(dataset.train), dataset.train, crops.center_crop(3, 16))


def assert_is(batch, split, transform):
  """Asserts that a first batch of training is of these images."""
  records = next(split.train_indices(batch_size=50, seed=0))
  for position, index in enumerate(records):
    record = split.source[index]
    pixels = transform(record["image"], order.generator(0, position))
    np.testing.assert_array_equal(batch["image"][position], pixels)
    assert batch["label"][position] == record["label"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_section_says_what_is_seen(load, in_memory):
  dataset = load(
    in_memory=in_memory,
    random_resized_crop=True,
    crop_scale=(0.1, 0.3),
    eval_image_size=12,
    center_crop_fraction=0.8,
  )
  assert dataset.image_shape == (16, 16, 3)
  crop = crops.random_resized_crop(3, 16, (0.1, 0.3))
  assert_is(first_batch(dataset.train), dataset.train, crop)
  middle, index = crops.center_crop(3, 12, 0.8), 0
  source = load().eval.source
  for batch in dataset.eval.eval_batches(batch_size=20):
    for pixels in batch["image"][batch["mask"]]:
      expected = middle(source[index]["image"], None)
      np.testing.assert_array_equal(pixels, expected)
      index += 1
  assert index == 30


def test_the_whole_image_is_resized_where_a_key_says_so(load):
  keys = {"eval_image_size": 11, "center_crop_fraction": 0.7}
  split = load(**keys, eval_resize_first=True).eval
  (batch,) = split.eval_batches(batch_size=30)
  (others,) = load(**keys).eval.eval_batches(batch_size=30)
  exact = crops.center_crop(3, 11, 0.7, resize_first=True)
  for index in range(30):
    expected = exact(split.source[index]["image"], None)
    np.testing.assert_array_equal(batch["image"][index], expected)
  assert (batch["image"] != others["image"]).any()


def test_images_need_not_be_squares(load):
  """Sizes as JSON has them; smaller ones, and squares, to begin with."""
  keys = {"image_size": [10, 16], "random_resized_crop": True}
  dataset = load(**keys)
  assert dataset.image_shape == (10, 16, 3)
  crop = crops.random_resized_crop(3, (10, 16))
  assert_is(first_batch(dataset.train), dataset.train, crop)
  (batch,) = dataset.eval.eval_batches(batch_size=30)
  middle = crops.center_crop(3, (10, 16))
  for index in range(30):
    expected = middle(dataset.eval.source[index]["image"], None)
    np.testing.assert_array_equal(batch["image"][index], expected)
  square = load(**keys, eval_image_size=12).eval
  assert square.reader.image_shape == (12, 12, 3)
  early = load(**keys, early_image_sizes=[[0.25, [4, 6]], [0.5, 8]]).train
  batches = early.train_batches(batch_size=20, seed=0, num_steps=4)
  sizes = [next(batches)["image"].shape[1:3] for _ in range(4)]
  assert sizes == [(4, 6), (8, 8), (10, 16), (10, 16)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_policy_comes_after_the_crop_and_only_in_training(load, in_memory):
  """Not on what is kept in memory once: it is drawn anew for each position."""
  plain = load()
  bent = load(policy="trivialaugment", in_memory=in_memory)
  crop = crops.center_crop(3, 16)
  policy = policies.make_policy("trivialaugment", num_channels=3)
  transform = lambda image, rng: policy(crop(image, rng), rng)
  assert_is(first_batch(bent.train), bent.train, transform)
  for one, other in zip(
    plain.eval.eval_batches(batch_size=30),
    bent.eval.eval_batches(batch_size=30),
    strict=True,
  ):
    np.testing.assert_array_equal(one["image"], other["image"])
  assert bent.train.random
  with pytest.raises(ValueError, match="another image each time"):
    bent.train.arrays()


@pytest.mark.parametrize("first_step", [0, 1, 3, 5])
def test_early_images_are_smaller_and_the_order_is_the_same(load, first_step):
  early = load(early_image_sizes=((0.25, 8), (0.5, 12))).train
  options = {"batch_size": 20, "seed": 3, "first_step": first_step}
  batches = early.train_batches(num_steps=8, **options)
  whole = load().train.train_batches(**options)
  for step in range(first_step, 8):
    batch, other = next(batches), next(whole)
    size = 8 if step < 2 else 12 if step < 4 else 16
    assert batch["image"].shape == (20, size, size, 3)
    np.testing.assert_array_equal(batch["label"], other["label"])


def test_the_indices_of_a_host_are_those_of_its_records(load):
  train = load(repeated_augmentation=2).train
  for host in range(2):
    shard = {"batch_size": 8, "first_step": 2, "shard_index": host}
    indices = train.train_indices(seed=3, shard_count=2, **shard)
    batches = train.train_batches(seed=3, shard_count=2, **shard)
    for _ in range(20):
      labels = [train.source[i]["label"] for i in next(indices)]
      np.testing.assert_array_equal(next(batches)["label"], labels)


def test_repeats_lie_in_one_batch(load):
  repeated = load(repeated_augmentation=5, random_resized_crop=True).train
  batch = first_batch(repeated)
  images = batch["image"].reshape(5, 10, -1)
  labels = batch["label"].reshape(5, 10)
  assert (labels == labels[0]).all()
  assert (images[1:] != images[0]).any(-1).all()
  with pytest.raises(ValueError, match="does not divide"):
    repeated.check(batch_size=64)
