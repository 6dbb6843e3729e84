"""Arrays in memory as a source."""

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data.arrays import ArraySource, open_npz

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 9, 9, 3), np.uint8)
LABELS = np.arange(12) % 4
ARRAYS = {
  "train_images": IMAGES,
  "train_labels": LABELS,
  "test_images": IMAGES[:5, ::-1],
  "test_labels": LABELS[:5],
  "class_names": np.array(["a", "b", "나", "d"]),
}


@pytest.fixture
def save(tmp_path):
  def save(**changes):
    path = tmp_path / "set.npz"
    arrays = {k: v for k, v in (ARRAYS | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path

  return save


def test_an_npz_file_is_a_data_set(save):
  dataset = data.load(
    name="npz",
    root=str(save()),
    data_dir=None,
    train_split="train[:8]",
    eval_split="test",
    image_size=9,
    random_resized_crop=False,
    center_crop_fraction=1.0,
    in_memory=True,
    num_threads=1,
    num_classes=4,
  )
  assert dataset.class_names == ["a", "b", "나", "d"]
  whole = dataset.train.arrays()
  np.testing.assert_array_equal(whole["image"], IMAGES[:8])
  np.testing.assert_array_equal(whole["label"], LABELS[:8])
  (batch,) = dataset.eval.eval_batches(batch_size=5)
  np.testing.assert_array_equal(batch["image"], IMAGES[:5, ::-1])


def test_grey_images_may_lack_an_axis():
  source = ArraySource(IMAGES[..., 0], LABELS, "abcd")
  assert source.channels == 1
  assert source[3]["image"].shape == (9, 9, 1)


def test_classes_without_names_are_numbered(save):
  path = save(class_names=None, test_labels=np.arange(5) % 3)
  for split in ("train", "test"):
    assert open_npz(path, split).class_names == list("0123")


@pytest.mark.parametrize(
  ("changes", "split", "message"),
  [
    ({}, "dev", "no split 'dev': use one of train, test"),
    ({}, "train[12:]", "no split"),
    ({"train_labels": None}, "train", "train_images and no train_labels"),
    ({"train_labels": LABELS[:7]}, "train", "12 images and labels of int64"),
    ({"train_labels": LABELS / 2}, "train", "labels of float64"),
    ({"train_labels": LABELS - 1}, "train", "labels -1 to 2 and 4 classes"),
    ({"train_labels": LABELS + 1}, "train", "labels 1 to 4 and 4 classes"),
    ({"train_images": IMAGES / 255}, "train", "images of float64 .*uint8"),
    ({"train_images": IMAGES[..., :2]}, "train", r"\[12, 9, 9, 2\]: use"),
    ({"train_images": IMAGES[0, 0]}, "train", r"\[9, 3\]: use"),
    ({"class_names": np.array([{}])}, "train", "not a NumPy file of plain"),
  ],
)
def test_wrong_arrays_are_told(save, changes, split, message):
  with pytest.raises(ValueError, match=message):
    open_npz(save(**changes), split)


def test_a_file_that_is_none_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"root is .*no\.npz, which is"):
    open_npz(tmp_path / "no.npz", "train")
  (tmp_path / "text.npz").write_text("text")
  with pytest.raises(ValueError, match="text.npz is not a NumPy file"):
    open_npz(tmp_path / "text.npz", "train")
