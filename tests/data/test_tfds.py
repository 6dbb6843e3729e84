"""Prepared TFDS sets as sources."""

import os
import shutil

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flax_resnet import data
from flax_resnet.data.decoding import decode
from flax_resnet.data.tfds import prepare_digits, TFDSSource
from flax_resnet.errors import ImageError
from tests.data.images import damage


def test_digits_are_those_of_scikit_learn_in_their_order(data_dir):
  digits = load_digits()
  for split, first, count in (("train", 0, 1437), ("test", 1437, 360)):
    source = TFDSSource("digits", split, data_dir)
    assert len(source) == count
    assert source.class_names == list("0123456789")
    for i in (0, 1, 100, count - 1):
      record = source[i]
      assert record["label"] == digits.target[first + i]
      expected = np.round(digits.images[first + i] * 255 / 16)
      pixels = decode(record["image"], channels=1)
      np.testing.assert_array_equal(pixels[..., 0], expected)


def test_digits_that_cannot_be_kept_say_where(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(
    OSError, match="the digits cannot be kept in .*/file/sets"
  ):
    prepare_digits(str(tmp_path / "file" / "sets"))


def test_parts_of_a_split(data_dir):
  whole, part = (
    TFDSSource("digits", split, data_dir) for split in ("train", "train[1077:]")
  )
  assert len(part) == 360
  for i in (0, 359):
    np.testing.assert_array_equal(part[i]["image"], whole[1077 + i]["image"])


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_damaged_record_is_skipped_alone(shapes_dir, tmp_path):
  shutil.copytree(shapes_dir, tmp_path / "copy")
  file = next((tmp_path / "copy" / "shapes").rglob("*.array_record*"))
  damage(file, 3)
  section = {
    "name": "shapes",
    "data_dir": str(tmp_path / "copy"),
    "train_split": "train[2:]",
    "eval_split": "train",
    "image_size": 16,
  }
  with pytest.raises(ImageError, match=f"^{file}, its record 3, cannot be re"):
    data.load(section, num_classes=2).train.source[1]
  evaluation = data.load(section | {"on_error": "skip"}, num_classes=2).eval
  (batch,) = evaluation.eval_batches(batch_size=10)
  assert list(np.flatnonzero(~batch["mask"])) == [3]
  assert evaluation.skipped.take() == 1
  with pytest.raises(IndexError):
    evaluation.source[10]


def test_a_data_dir_may_start_with_a_tilde(data_dir, monkeypatch, tmp_path):
  home, name = os.path.split(data_dir)
  monkeypatch.setenv("HOME", home)
  monkeypatch.chdir(tmp_path)
  section = {
    "name": "digits",
    "data_dir": f"~/{name}",
    "train_split": "train",
    "eval_split": "test",
    "image_size": 8,
  }
  assert len(data.load(section, num_classes=10).train) == 1437
  # Else the digits are prepared again, in a folder that is called "~".
  assert not list(tmp_path.iterdir())
  assert len(TFDSSource("digits", "test", f"~/{name}")) == 360


@pytest.mark.parametrize(
  "split", ["test[10:5]", "test[:0%]", "test[400:]", "test[:9]+test[8:3]"]
)
def test_an_empty_part(data_dir, split):
  with pytest.raises(ValueError, match="data set 'digits': .*split"):
    TFDSSource("digits", split, data_dir)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_prepared_set_is_read_from_its_files_alone(shapes_dir, in_memory):
  section = {
    "name": "shapes",
    "data_dir": shapes_dir,
    "train_split": "train",
    "eval_split": "train",
    "image_size": 16,
    "random_resized_crop": True,
    "in_memory": in_memory,
  }
  shapes = data.load(section, num_classes=2)
  batch = next(shapes.train.train_batches(batch_size=10, seed=0))
  assert batch["image"].shape == (10, 16, 16, 3)
  # The color tells the record, the record its label.
  record = np.round(batch["image"][..., 0].mean((1, 2)) / 10)
  assert sorted(record) == list(range(10))
  np.testing.assert_array_equal(batch["label"], record % 2)
  assert shapes.class_names == ["disc", "square"]
