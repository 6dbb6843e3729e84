"""The sentences of the data room: what is wrong, and what to do."""

import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest

from flax_resnet import data
from flax_resnet.data import decoding, folder, policies, sources
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.order import Order
from flax_resnet.errors import ImageError, InputError
from tests.data.images import damage, encode, tiff

FINE = {
  "name": "synthetic",
  "train_split": "train",
  "eval_split": "train",
  "image_size": 16,
}
SECTIONS = {
  ".image_sise is unknown: did you mean 'image_size'?": {"image_sise": 16},
  ".image_size is 0: use 1 to 9,459 or (height, width) of such": {
    "image_size": 0
  },
  ".image_size is (96, 0): use int, 1 to 9,459 or (height, width) of such": {
    "image_size": (96, 0)
  },
  ".image_size is (3, 96, 128): use 1 to 9,459 or (height, width) of such": {
    "image_size": (3, 96, 128)
  },
  ".image_size is '96x128': use int, 1 to 9,459 or (height, width) of such": {
    "image_size": "96x128"
  },
  ".eval_image_size is (96,): use 1 to 9,459 or (height, width) of such or "
  "None": {"eval_image_size": (96,)},
  ": crop_scale is (0.5, 0.2): use two numbers, the smaller first": {
    "crop_scale": (0.5, 0.2)
  },
  ": early_image_sizes is ((1.5, 8.0),): use pairs of a share of the run, each "
  "larger than the one before, and a whole size, or (height, width)": {
    "early_image_sizes": ((1.5, 8),)
  },
  ": early_image_sizes is ((0.5, (8, 9, 3)),): use pairs of a share of the "
  "run, each larger than the one before, and a whole size, or (height, "
  "width)": {"early_image_sizes": ((0.5, (8, 9, 3)),)},
  ": early_image_sizes is (((1, 2), 8.0),): use pairs of a share of the run, "
  "each larger than the one before, and a whole size, or (height, width)": {
    "early_image_sizes": (((1, 2), 8),)
  },
  ": policy_magnitude is 31.0: use 0 to 30": {
    "policy": "randaugment",
    "policy_magnitude": 31.0,
  },
  ": trivialaugment draws its magnitude: leave out policy_magnitude and "
  "policy_magnitude_std": {
    "policy": "trivialaugment",
    "policy_magnitude_std": 0.5,
  },
  ": root is no.npz, which is not there: give the path of a .npz file": {
    "name": "npz",
    "root": "no.npz",
  },
  ": root is None: give where the folder is, --config.data.root=…": {
    "name": "folder"
  },
  ": data set 'synthetic' has no split 'dev': use one of train, test": {
    "train_split": "dev"
  },
  ": unknown data set 'cifr10': did you mean 'cifar10'?": {"name": "cifr10"},
  ": data set 'cifar10' is not prepared in DIR: run 'python -m flax_resnet "
  "prepare cifar10 --data-dir DIR', or set config.data.data_dir to the folder "
  "that holds it": {"name": "cifar10"},
  ": data set 'shapes': split 'train[6:3]' is empty, of the 10 records of "
  "'train': use another part, such as 'train[:90%]'": {
    "name": "shapes",
    "train_split": "train[6:3]",
  },
  ": data set 'shapes': there is no split 'dev': use one of train, or a part "
  "of one, such as 'train[:90%]'": {"name": "shapes", "train_split": "dev"},
  ".max_pixels is 0: use 1 or more": {"max_pixels": 0},
  ": data set 'captions' has the features image, label: use an "
  "image-classification set, with an 'image' and a class as 'label'": {
    "name": "captions"
  },
  ": data set 'shapes' has 2 classes and the model 3: set "
  "config.model.num_classes to 2": {"name": "shapes"},
}


def problem(section, num_classes=3):
  """Returns what `data.load` says, after "config.data"."""
  with pytest.raises(InputError) as error:
    data.load(FINE | section, num_classes=num_classes)
  return str(error.value).removeprefix("config.data")


@pytest.mark.parametrize(("expected", "changes"), SECTIONS.items())
def test_sections(shapes_dir, expected, changes):
  found = problem({"data_dir": shapes_dir} | changes)
  assert found == expected.replace("DIR", shapes_dir)


def test_a_set_without_random_access(shapes_dir, tmp_path):
  shutil.copytree(shapes_dir, tmp_path / "copy")
  info = next((tmp_path / "copy" / "shapes").rglob("dataset_info.json"))
  about = json.loads(info.read_text())
  assert about["fileFormat"] == "array_record"
  info.write_text(json.dumps(about | {"fileFormat": "tfrecord"}))
  found = problem({"name": "shapes", "data_dir": str(tmp_path / "copy")})
  assert "is stored as tfrecord, which has no random access: prepare" in found


# What is said of a folder from which something is removed.
FOLDERS = {
  "split 'val[:0]' is empty, of the 9 records of 'val': use another part": "",
  "train holds 1 folder of a class (anemone): there must be 2": "train/[!a]*",
  "val has classes that are not trained on: anemone": "train/a*",
  "val lacks classes that are trained on: anemone; add them, or": "val/anemone",
  "val/anemone has no images (.apng, .avif, .avifs, .bmp,": "val/anemone/*",
}


@pytest.mark.parametrize(("expected", "removed"), FOLDERS.items())
def test_folders(split_folder, expected, removed):
  for path in split_folder.glob(removed) if removed else ():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  section = {"name": "folder", "root": str(split_folder)}
  split = "val" if removed else "val[:0]"
  assert expected in problem(section | {"eval_split": split})


def test_folders_that_are_not_there(split_folder):
  section = {"name": "folder", "eval_split": "dev"}
  assert problem(section | {"root": "/no/such"}) == (
    ": root is /no/such, where there is no folder: give the path of one that "
    "holds a folder a class, or train and val with these"
  )
  assert problem(section | {"root": str(split_folder)}) == (
    f": {split_folder} has no folder 'dev' for the split 'dev': there is "
    "train, val; of an undivided folder use parts, 'train[:80%]' and "
    "'train[80%:]'"
  )


def test_folders_that_are_splits(split_folder):
  """By names that this package does not look for."""
  for name in ("train", "val"):
    (split_folder / name).rename(split_folder / name.title())
  assert problem({"name": "folder", "root": str(split_folder)}) == (
    f": {split_folder} holds Train, Val, which are called as splits and not as "
    "classes: rename them to train and val, or name them by train_split and "
    "eval_split"
  )
  named = {"train_split": "Train", "eval_split": "Val"}
  section = FINE | {"name": "folder", "root": str(split_folder)} | named
  data.load(section, num_classes=3)


IMAGES, LABELS = np.zeros((12, 9, 9, 3), np.uint8), np.arange(12) % 4
NPZ_FILES = {
  "train_images and no train_labels: add them": {"train_labels": None},
  "12 images and labels of int64 [7]: use an": {"train_labels": LABELS[:7]},
  "images and labels of float64 [12]: use an": {"train_labels": LABELS / 2},
  "labels -1 to 2 and 4 classes: count from 0": {"train_labels": LABELS - 1},
  "images of float64 [12, 9, 9, 3]: use uint8": {"train_images": IMAGES / 1},
  "uint8 [12, 9, 9, 2]: use": {"train_images": IMAGES[..., :2]},
  "set.npz holds the arrays class_names, x_train: call those of a split "
  "SPLIT_images and SPLIT_labels, such as train_images": {
    **{"train_images": None, "train_labels": None, "x_train": IMAGES},
  },
  "class_names of ROOT has 'a' more than once: name each class": {
    "class_names": np.array(list("abca"))
  },
  "is not a NumPy file of plain arrays": {"class_names": np.array([{}])},
}


@pytest.mark.parametrize(("expected", "changes"), NPZ_FILES.items())
def test_npz_files(tmp_path, expected, changes):
  arrays = {"train_images": IMAGES, "train_labels": LABELS}
  arrays |= {"class_names": np.array(list("abcd"))} | changes
  arrays = {k: v for k, v in arrays.items() if v is not None}
  np.savez(tmp_path / "set.npz", **arrays)
  with pytest.raises(ValueError) as error:
    sources.open_npz(tmp_path / "set.npz", "train")
  expected = expected.replace("ROOT", str(tmp_path / "set.npz"))
  assert expected in str(error.value)


BROKEN = {
  "the file is empty": b"",
  "8 bytes that start with b'no image' are not an image": b"no image",
  "the file is a GIF under another name": encode(Image.new("L", (9, 9)), "GIF"),
  "the image has floating-point pixels and does not declare their largest "
  "value: convert it to 8 bits": encode(Image.new("F", (9, 9)), "TIFF"),
  "the image has signed or 32-bit pixels and does not declare their largest "
  "value: convert it to 8 bits": encode(Image.new("I", (9, 9)), "TIFF"),
  "the image has pixels of 7 to 7 and declares 0 to 6: convert it to 8 bits": (
    encode(Image.new("I", (9, 9), 7), "TIFF", tiffinfo={281: 6})
  ),
  "the image has colors of 16 bits and declares 0 to 4095: convert it to 8 "
  "bits": tiff(np.zeros((9, 9, 3), np.uint16), t281=4095),
  "the image is a TIFF of a kind that Pillow does not read: convert it to 8 "
  "bits": tiff(np.zeros((9, 9))),
}


@pytest.mark.parametrize(("expected", "content"), BROKEN.items())
def test_broken_images(split_folder, expected, content):
  path = split_folder / "train" / "anemone" / "사진 00.jpg"
  path.write_bytes(content)
  section = {"name": "folder", "root": str(split_folder), "in_memory": True}
  assert problem(section) == (
    f": {path}: {expected}: mend or remove it, or set "
    "config.data.on_error='skip'"
  )


def test_files_that_are_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(folder, "MAX_FILE_BYTES", 1000)
  (tmp_path / "long").write_bytes(b"x" * 1001)
  os.mkfifo(tmp_path / "pipe")
  for name, expected in (
    ("none", "cannot be read: No such file or directory"),
    ("pipe", "cannot be read: it is a pipe or a device"),
    ("long", "has 1,001 bytes, more than 1,000: it would fill the memory"),
  ):
    with pytest.raises(ImageError) as error:
      folder.read_file(tmp_path / name)
    assert str(error.value) == f"the file {expected}"
  # What has more pixels may have more bytes.
  folder.read_file(tmp_path / "long", 2 * decoding.MAX_PIXELS)


def test_files_that_are_left_out(split_folder):
  anemone = split_folder / "train" / "anemone"
  for name in ("a.txt", "b.TXT", "c.heic2", "none", ".hidden", "d.jfif"):
    (anemone / name).write_bytes(b"")
  with pytest.warns(UserWarning) as warned:
    FolderSource(split_folder, "train")
  (warning,) = warned
  assert str(warning.message) == (
    f"{split_folder}/train: files left out by their endings: .txt 2, .heic2 1, "
    "none 1"
  )


def test_a_damaged_record(shapes_dir, tmp_path):
  root = tmp_path / "copy"
  shutil.copytree(shapes_dir, root)
  file = next((root / "shapes").rglob("*.array_record*"))
  damage(file, 3)
  section = {"name": "shapes", "data_dir": str(root), "in_memory": True}
  start = (
    f": record 3 of shapes train in {file.parent}: {file}, its record 3, "
    "cannot be read: Corrupted Riegeli/records file: chunk data hash mismatch"
  )
  assert problem(section, num_classes=2).startswith(start)
  for name in ("dataset_info.json", "features.json"):
    path = file.with_name(name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert problem(section).startswith(f": data set 'shapes' in {root} is dam")
    path.write_bytes(whole)


def test_floats_in_a_prepared_set(shapes_dir, tmp_path):
  shutil.copytree(shapes_dir, tmp_path / "copy")
  file = next((tmp_path / "copy" / "shapes").rglob("features.json"))
  text = file.read_text()
  floats = text.replace('"uint8"', '"float32"').replace('"3"', '"1"')
  assert floats != text
  file.write_text(floats)
  assert problem({"name": "shapes", "data_dir": str(tmp_path / "copy")}) == (
    ": data set 'shapes' has images of float32: use one of uint8 or uint16"
  )


def test_values_that_do_not_fit():
  image = encode(np.zeros((40, 60), np.uint8))
  with pytest.raises(ImageError) as error:
    decoding.decode(image, 3, max_pixels=1000)
  assert str(error.value) == (
    "the image has 40 x 60 pixels, more than max_pixels, 1,000: a file that "
    "fills the memory"
  )
  with pytest.raises(ValueError, match="is 3, which does not divide .* 8: use"):
    Order(10, 0, 8, repeats=3)
  for fill in ((1, 2), (1, 2, 256)):
    with pytest.raises(ValueError, match="fill is .*: use 3 of 0 to 255, one"):
      policies.make_policy("randaugment", num_channels=3, fill=fill)
