"""Arrays and made-up images as sources, and parts of a set."""

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import sources
from flax_resnet.data.sources import ArraySource, open_npz, parse_split

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 9, 9, 3), np.uint8)
LABELS = np.arange(12) % 4
ARRAYS = {
  "train_images": IMAGES,
  "train_labels": LABELS,
  "test_images": IMAGES[:5, ::-1],
  "test_labels": LABELS[:5],
}


def test_an_npz_file_is_a_data_set(tmp_path):
  np.savez(tmp_path / "set.npz", **ARRAYS, class_names=["a", "b", "나", "d"])
  section = {
    "name": "npz",
    "root": str(tmp_path / "set.npz"),
    "train_split": "train[:8]",
    "eval_split": "test",
    "image_size": 9,
    "in_memory": True,
  }
  dataset = data.load(section, num_classes=4)
  assert dataset.class_names == ["a", "b", "나", "d"]
  whole = dataset.train.arrays()
  np.testing.assert_array_equal(whole["image"], IMAGES[:8])
  np.testing.assert_array_equal(whole["label"], LABELS[:8])
  (batch,) = dataset.eval.eval_batches(batch_size=5)
  np.testing.assert_array_equal(batch["image"], IMAGES[:5, ::-1])


def test_a_file_may_be_below_the_home(tmp_path, monkeypatch):
  np.savez(tmp_path / "set.npz", **ARRAYS)
  monkeypatch.setenv("HOME", str(tmp_path))
  source = open_npz("~/set.npz", "train[3:]")
  assert source.name(2) == "image 2 of train[3:] in ~/set.npz"


def test_classes_without_names_are_numbered_over_all_splits(tmp_path):
  path = tmp_path / "set.npz"
  np.savez(path, **(ARRAYS | {"test_labels": np.arange(5) % 3}))
  for split in ("train", "test"):
    assert open_npz(path, split).class_names == list("0123")


def test_gray_images_may_lack_an_axis():
  source = ArraySource(IMAGES[..., 0], LABELS, "abcd")
  assert source.channels == 1
  assert source[3]["image"].shape == (9, 9, 1)


def test_synthetic_images_are_the_same_each_time():
  one, other = (sources.open_synthetic("test", 12, 7) for _ in range(2))
  assert len(one) == 256
  for index in (0, 5, 255):
    assert one[index]["label"] == index % 7
    assert one[index]["image"].shape == (12, 12, 3)
    np.testing.assert_array_equal(one[index]["image"], other[index]["image"])


@pytest.mark.parametrize(
  ("split", "expected"),
  [
    ("train", range(10)),
    ("train[:80%]", range(8)),
    ("train[-3:]", range(7, 10)),
    ("train[:2]+train[9:]", [0, 1, 9]),
  ],
)
def test_parts_are_those_of_tfds(split, expected):
  name, indices = parse_split(split, {"train": 10, "val": 5})
  assert name == "train"
  assert list(indices) == list(expected)


@pytest.mark.parametrize(
  "split", ["dev", "train[:9", "train+val", "train[:5%", "dev[4:2]"]
)
def test_there_is_no_such_part(split):
  with pytest.raises(ValueError, match="no split"):
    parse_split(split, {"train": 10, "val": 5})


@pytest.mark.parametrize(
  "split", ["train[10:]", "train[10:5]", "train[:0]", "train[5%:5%]"]
)
def test_a_part_is_empty(split):
  with pytest.raises(ValueError, match="is empty, of the 10 records"):
    parse_split(split, {"train": 10, "val": 5})
