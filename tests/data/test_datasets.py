import io
import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits
import tensorflow_datasets as tfds

from flax_resnet import data

ARGUMENTS = {
  "data_dir": None,
  "train_split": "train",
  "eval_split": "test",
  "image_size": 8,
  "random_resized_crop": False,
  "center_crop_fraction": 1.0,
  "in_memory": True,
  "num_threads": 2,
  "num_classes": 10,
}


def load(name, **changes):
  return data.load(name=name, **(ARGUMENTS | changes))


class Captions(tfds.core.GeneratorBasedBuilder):
  """A set whose label is not a class."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(4, 4, 3)),
      "label": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    yield 0, {"image": file.getvalue(), "label": "a square"}


class Shapes(tfds.core.GeneratorBasedBuilder):
  """A small data set of photographs of several sizes."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=["disc", "square"]),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(10):
      file = io.BytesIO()
      Image.new("RGB", (20 + i, 30), (10 * i, 0, 0)).save(file, "JPEG")
      yield i, {"image": file.getvalue(), "label": i % 2}


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("shapes")
  for builder in (Shapes, Captions):
    builder(
      data_dir=str(path), file_format=tfds.core.FileFormat.ARRAY_RECORD
    ).download_and_prepare()
  return str(path)


def test_digits_are_those_of_scikit_learn_in_their_order(data_dir):
  digits = load("digits", data_dir=data_dir)
  assert (len(digits.train), len(digits.eval)) == (1437, 360)
  pixels = load_digits().images
  for split, first in ((digits.train, 0), (digits.eval, 1437)):
    for i in (0, 1, 100, len(split) - 1):
      record = split.source[i]
      assert record["label"] == load_digits().target[first + i]
      wanted = np.round(pixels[first + i] * 255 / 16)
      np.testing.assert_array_equal(record["image"][..., 0], wanted)
  assert digits.class_names == list("0123456789")
  assert digits.image_shape == (8, 8, 1)


def test_a_data_dir_may_start_with_a_tilde(data_dir, monkeypatch, tmp_path):
  home, name = os.path.split(data_dir)
  monkeypatch.setenv("HOME", home)
  monkeypatch.chdir(tmp_path)
  assert len(load("digits", data_dir=f"~/{name}").train) == 1437
  # Else the digits are prepared again, in a folder that is called "~".
  assert not list(tmp_path.iterdir())


def test_parts_of_a_split(data_dir):
  digits = load(
    "digits",
    data_dir=data_dir,
    train_split="train[:1077]",
    eval_split="train[1077:]",
  )
  assert (len(digits.train), len(digits.eval)) == (1077, 360)
  whole = load("digits", data_dir=data_dir).train.source
  for i in (0, 359):
    a, b = digits.eval.source[i], whole[1077 + i]
    np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_prepared_set_is_read_from_its_files_alone(shapes_dir, in_memory):
  shapes = load(
    "shapes",
    data_dir=shapes_dir,
    eval_split="train",
    num_classes=2,
    image_size=16,
    in_memory=in_memory,
    random_resized_crop=True,
  )
  batch = next(shapes.train.train_batches(batch_size=10, seed=0))
  assert batch["image"].shape == (10, 16, 16, 3)
  # The colour tells the record, the record its label.
  record = np.round(batch["image"][..., 0].mean((1, 2)) / 10)
  assert sorted(record) == list(range(10))
  np.testing.assert_array_equal(batch["label"], record % 2)
  assert shapes.class_names == ["disc", "square"]


def test_synthetic_images_need_nothing():
  synthetic = load("synthetic", num_classes=7, image_size=12, in_memory=False)
  batch = next(synthetic.train.train_batches(batch_size=64, seed=0))
  assert batch["image"].shape == (64, 12, 12, 3)
  assert set(batch["label"]) <= set(range(7))
  again = next(synthetic.train.train_batches(batch_size=64, seed=0))
  np.testing.assert_array_equal(batch["image"], again["image"])


@pytest.mark.parametrize("in_memory", [True, False])
def test_evaluation_may_be_of_another_size(shapes_dir, in_memory):
  shapes = load(
    "shapes",
    data_dir=shapes_dir,
    eval_split="train",
    num_classes=2,
    image_size=16,
    eval_image_size=24,
    in_memory=in_memory,
  )
  assert shapes.image_shape == (16, 16, 3)
  train = next(shapes.train.train_batches(batch_size=5, seed=0))
  assert train["image"].shape == (5, 16, 16, 3)
  evaluated = list(shapes.eval.eval_batches(batch_size=4))
  assert {batch["image"].shape for batch in evaluated} == {(4, 24, 24, 3)}
  assert sum(batch["mask"].sum() for batch in evaluated) == 10


def test_a_policy_comes_after_the_crop_and_only_in_training(data_dir):
  """Not on what is kept in memory once: it is drawn anew for each place."""
  arguments = {"data_dir": data_dir, "image_size": 16}
  plain = load("digits", **arguments)
  bent = load("digits", policy="trivialaugment", **arguments)
  batches = [
    next(each.train.train_batches(batch_size=50, seed=0))
    for each in (plain, bent, bent)
  ]
  np.testing.assert_array_equal(batches[0]["label"], batches[1]["label"])
  differ = (batches[0]["image"] != batches[1]["image"]).any((1, 2, 3))
  assert 0.5 < differ.mean() < 1  # One choice of 14 is to do nothing.
  np.testing.assert_array_equal(batches[1]["image"], batches[2]["image"])
  for one, other in zip(
    plain.eval.eval_batches(batch_size=360),
    bent.eval.eval_batches(batch_size=360),
    strict=True,
  ):
    np.testing.assert_array_equal(one["image"], other["image"])
  with pytest.raises(ValueError, match="make another image each time"):
    bent.train.arrays()


@pytest.mark.parametrize(
  ("name", "changes", "error", "message"),
  [
    ("cifr10", {}, ValueError, "unknown data set 'cifr10': did you mean 'cif"),
    ("cifar10", {}, FileNotFoundError, "prepare cifar10 --data-dir .* or set"),
    ("shapes", {"train_split": "tran"}, ValueError, "no split 'tran': use one"),
    (
      "shapes",
      {"train_split": "train[:0]"},
      ValueError,
      "no split .* not empty",
    ),
    ("captions", {}, ValueError, "has the features .*: use an image-classific"),
    ("shapes", {"num_classes": 5}, ValueError, "2 classes and the model 5"),
    ("synthetic", {"train_split": "dev"}, ValueError, "no split 'dev'"),
    ("synthetic", {"image_size": 0}, ValueError, "image_size is 0"),
    ("synthetic", {"eval_image_size": 0}, ValueError, "eval_image_size is 0"),
    ("synthetic", {"num_threads": -1}, ValueError, "num_threads is -1"),
    (
      "synthetic",
      {"policy": "randaugment", "policy_magnitude": 31.0},
      ValueError,
      "magnitude is 31",
    ),
    ("synthetic", {"center_crop_fraction": 0.0}, ValueError, "center_crop_fr"),
  ],
)
def test_wrong_inputs_are_told(shapes_dir, name, changes, error, message):
  arguments = {"data_dir": shapes_dir, "eval_split": "train"} | changes
  if name == "shapes":
    arguments.setdefault("num_classes", 2)
  with pytest.raises(error, match=message):
    load(name, **arguments)


def test_a_set_without_random_access_is_told(shapes_dir, tmp_path):
  shutil.copytree(shapes_dir, tmp_path / "copy")
  info = next((tmp_path / "copy").rglob("dataset_info.json"))
  about = json.loads(info.read_text())
  assert about["fileFormat"] == "array_record"
  info.write_text(json.dumps(about | {"fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match="stored as .*tfrecord.* random access"):
    load("shapes", data_dir=str(tmp_path / "copy"), num_classes=2)
