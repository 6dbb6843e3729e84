"""Prepared copies of data sets: their records, pictures and bytes."""

import csv
import io
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from flax_resnet import data
from flax_resnet.data import discovery, preparation
from flax_resnet.data.decoding import decode
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.preparation import Pictures, prepare_splits
from flax_resnet.data.sources import ArraySource, Columns
from flax_resnet.data.tfds import TFDSSource
from flax_resnet.errors import ImageError
from tests.data.images import encode, photograph, plain
from tests.data.test_webdataset import members_of, write
from tests.recipes import ROOT


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(preparation, "RECORDS_PER_SHARD", 7)


def folder_root(tmp_path, split_folder, shapes_dir):
  return split_folder


def manifest_root(tmp_path, split_folder, shapes_dir):
  path = tmp_path / "labels.csv"
  images = sorted(split_folder.rglob("*.jpg"), reverse=True)
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(("path", "label", "split"))
    for image in images:
      parts = image.relative_to(split_folder).parts
      writer.writerow(("/".join(parts), parts[1], parts[0]))
  return path


def webdataset_root(tmp_path, split_folder, shapes_dir):
  for split, count in (("train", 20), ("val", 4)):
    write(tmp_path / f"tars/x-{split}-0.tar", members_of(range(count)))
  return tmp_path / "tars"


def npz_root(tmp_path, split_folder, shapes_dir):
  rng = np.random.default_rng(0)
  arrays = {"class_names": ["rose", "tulip"]}
  for split, count in (("train", 9), ("test", 3)):
    images = rng.integers(0, 256, (count, 6, 5, 1), np.uint8)
    arrays[f"{split}_images"] = images
    arrays[f"{split}_labels"] = rng.integers(0, 2, count)
  np.savez(tmp_path / "arrays.npz", **arrays)
  return tmp_path / "arrays.npz"


def tfds_root(tmp_path, split_folder, shapes_dir):
  return None


SPLITS = {
  folder_root: ["train", "val"],
  manifest_root: ["train", "val"],
  webdataset_root: ["train", "val"],
  npz_root: ["train", "test"],
  tfds_root: ["train"],
}


@pytest.mark.parametrize("write_root", SPLITS)
def test_records_are_those_of_the_source(
  tmp_path, split_folder, shapes_dir, write_root
):
  root = write_root(tmp_path, split_folder, shapes_dir)
  if root is None:
    sources = discovery.open_splits("shapes", Columns(), data_dir=shapes_dir)
  else:
    kind = discovery.kind_of(str(root))
    assert kind == write_root.__name__.removesuffix("_root")
    sources = discovery.open_splits(kind, Columns(), root=str(root))
  assert list(sources) == SPLITS[write_root]
  _, counts = prepare_splits(sources, "copy", tmp_path / "out", Pictures(400))
  assert counts == {split: len(source) for split, source in sources.items()}
  for split, source in sources.items():
    copy = TFDSSource("copy", split, str(tmp_path / "out"))
    assert len(copy) == len(source) > 0
    assert list(copy.class_names) == list(source.class_names)
    assert copy.channels == source.channels
    for index in range(len(source)):
      record, copied = source[index], copy[index]
      assert copied["label"] == record["label"]
      if isinstance(record["image"], bytes):
        assert copied["image"] == record["image"]
      else:
        pixels = decode(copied["image"], copy.channels)
        np.testing.assert_array_equal(pixels, record["image"])


def test_classes_are_those_of_training(tmp_path, split_folder):
  """Also where a split lacks the first ones."""
  lines = ["path,label,split"]
  for split, labels in (("val", "bc"), ("train", "abc")):
    image = next((split_folder / split).rglob("*.jpg"))
    lines += [f"{image},{label},{split}" for label in labels[-1:]]
    others = [p for p in (split_folder / split).rglob("*.jpg") if p != image]
    lines += [
      f"{other},{label},{split}"
      for label, other in zip(labels[:-1], others, strict=False)
    ]
  (tmp_path / "labels.csv").write_text("\n".join(lines))
  sources = discovery.open_splits(
    "manifest", Columns(), root=str(tmp_path / "labels.csv")
  )
  prepare_splits(sources, "copy", tmp_path, Pictures())
  val = TFDSSource("copy", "val", str(tmp_path))
  assert list(val.class_names) == ["a", "b", "c"]
  assert [val[index]["label"] for index in range(2)] == [2, 1]


def test_batches_are_those_of_the_folder(tmp_path, split_folder):
  sources = discovery.open_splits("folder", Columns(), root=str(split_folder))
  prepare_splits(sources, "copy", tmp_path / "out", Pictures(400))
  section = {"train_split": "train", "eval_split": "val", "image_size": 8}
  section["random_resized_crop"] = True
  places = (
    {"name": "folder", "root": str(split_folder)},
    {"name": "copy", "data_dir": str(tmp_path / "out")},
  )
  here, there = (data.load(section | at, num_classes=3) for at in places)
  ours, copied = (
    next(each.train.train_batches(batch_size=30, seed=1))
    for each in (here, there)
  )
  for key in ("image", "label"):
    np.testing.assert_array_equal(ours[key], copied[key])


@pytest.mark.parametrize(
  ("height", "width", "expected"),
  [
    (90, 120, (45, 60)),
    (121, 60, (60, 30)),
    (60, 60, (60, 60)),
    (2, 200, (1, 60)),
  ],
)
def test_the_longer_side_is_bounded(height, width, expected):
  pixels = photograph(height, width)
  file = encode(pixels, "JPEG", quality=95)
  stored = Pictures(60).stored(file, 3)
  assert decode(stored, 3).shape == (*expected, 3)
  assert (stored == file) == (max(height, width) <= 60)


def test_pictures_are_the_mean_of_their_pixels():
  """By Pillow, whose box filter is the mean where sides are halved."""
  image = Image.fromarray(photograph(80, 120))
  expected = np.asarray(image.resize((60, 40), Image.Resampling.BOX), int)
  stored = Pictures(60, quality=100).stored(encode(image), 3)
  assert stored.startswith(b"\xff\xd8")
  error = np.abs(decode(stored, 3) - expected)
  assert error.mean() < 2
  assert error.max() < 20


@pytest.mark.parametrize("quality", [50, 90])
def test_the_quality_is_that_of_pillow(quality):
  image = Image.fromarray(photograph(80, 120))
  theirs = Image.open(io.BytesIO(encode(image, "JPEG", quality=quality)))
  stored = Pictures(60, quality=quality).stored(encode(image), 3)
  ours = Image.open(io.BytesIO(stored))
  assert ours.quantization == theirs.quantization
  assert ours.layer == theirs.layer  # Chroma of half the size.


def test_smaller_pictures_are_upright():
  image = Image.fromarray(photograph(40, 80))
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by 90 degrees.
  turned = encode(image, "JPEG", exif=exif)
  assert decode(Pictures(40).stored(turned, 3), 3).shape == (40, 20, 3)
  assert Pictures(80).stored(turned, 3) == turned


@pytest.mark.parametrize("size", [8, 4])
def test_gray_stays_gray(tmp_path, size):
  pixels = photograph(8, 8)[None, ..., :1].repeat(3, 0)
  source = ArraySource(pixels, np.array([0, 1, 0]), ["a", "b"])
  prepare_splits({"train": source}, "gray", tmp_path, Pictures(size))
  copy = TFDSSource("gray", "train", str(tmp_path))
  assert copy.channels == 1
  image = Image.open(io.BytesIO(copy[0]["image"]))
  assert (image.mode, image.size) == ("L", (size, size))


class Counted:
  """Another source, which says what is read, and fails at a record."""

  def __init__(self, source, fails_at=None):
    self.source, self.fails_at, self.read = source, fails_at, []

  def __len__(self):
    return len(self.source)

  def __getattr__(self, name):
    return getattr(self.source, name)

  def __getitem__(self, index):
    if index == self.fails_at:
      raise KeyboardInterrupt
    self.read.append(index)
    return self.source[index]


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_what_was_stopped_goes_on(tmp_path, split_folder):
  """With complete shards as they are, and to the same bytes."""
  source = FolderSource(split_folder, "train")
  pictures = Pictures(11)
  whole, _ = prepare_splits({"train": source}, "x", tmp_path / "a", pictures)
  stopped = Counted(source, fails_at=16)
  with pytest.raises(KeyboardInterrupt):
    prepare_splits({"train": stopped}, "x", tmp_path / "b", pictures)
  assert not (tmp_path / "b" / "x" / "1.0.0").exists()
  again, done = Counted(source), []
  after, counts = prepare_splits(
    {"train": again},
    "x",
    tmp_path / "b",
    pictures,
    num_threads=4,
    advance=done.append,
  )
  assert counts == {"train": 30}
  assert sorted(again.read) == list(range(14, 30))
  assert sum(done) == 30
  assert contents(whole) == contents(after)
  idle = Counted(source)
  prepare_splits({"train": idle}, "x", tmp_path / "b", pictures)
  assert not idle.read


KILLED = """
import os, signal, sys
from flax_resnet.data import preparation
from flax_resnet.data.folder import FolderSource

class Killed(FolderSource):
  def __getitem__(self, index):
    if index == 16:
      os.kill(os.getpid(), signal.SIGKILL)
    return super().__getitem__(index)

preparation.RECORDS_PER_SHARD = 7
preparation.prepare_splits(
  {"train": Killed(sys.argv[1], "train")}, "x", sys.argv[2],
  preparation.Pictures(11),
)
"""


def test_what_was_killed_goes_on(tmp_path, split_folder):
  command = [sys.executable, "-c", KILLED, split_folder, tmp_path / "b"]
  killed = subprocess.run(command, cwd=ROOT, check=False)
  assert killed.returncode == -signal.SIGKILL
  assert len(list((tmp_path / "b" / "x").rglob("*array_record-*-of-*"))) == 3
  source = Counted(FolderSource(split_folder, "train"))
  for folder in ("a", "b"):
    source.read.clear()
    prepare_splits({"train": source}, "x", tmp_path / folder, Pictures(11))
  assert min(source.read) == 14
  assert contents(tmp_path / "a") == contents(tmp_path / "b")


def break_image(split_folder):
  path = sorted((split_folder / "train").rglob("*.jpg"))[9]
  path.write_bytes(path.read_bytes()[:300])
  return path


def test_a_broken_image_stops_with_its_name(tmp_path, split_folder):
  broken = break_image(split_folder)
  source = {"train": FolderSource(split_folder, "train")}
  with pytest.raises(ImageError, match="the image is broken") as caught:
    prepare_splits(source, "x", tmp_path, Pictures())
  assert str(caught.value).startswith(f"{broken}: ")
  assert "--config.data.on_error=skip" in str(caught.value)
  # The shard before it is kept, and the one with it not there.
  shards = [path.name for path in (tmp_path / "x").rglob("*array_record*")]
  assert shards == ["x-train.array_record-00000-of-00005"]


def test_broken_images_are_skipped(tmp_path, split_folder):
  break_image(split_folder)
  source = FolderSource(split_folder, "train")
  with pytest.warns(UserWarning, match="^skipped .*the image is broken"):
    _, counts = prepare_splits(
      {"train": source}, "x", tmp_path, Pictures(), on_error="skip"
    )
  assert counts == {"train": 29}
  copy = TFDSSource("x", "train", str(tmp_path))
  others = [index for index in range(30) if index != 9]
  for index, other in enumerate(others):
    assert copy[index] == source[other]


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_shard_of_broken_images(tmp_path):
  """Has no records, as TFDS lets it."""
  for number in range(20):
    path = tmp_path / "in" / "ab"[number % 2] / f"{number:02}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plain((number, 0, 0)) if number >= 14 else b"broken")
  source = {"train": FolderSource(tmp_path / "in", "train")}
  prepare_splits(source, "x", tmp_path, Pictures(), on_error="skip")
  copy = TFDSSource("x", "train", str(tmp_path))
  assert [copy[index]["label"] for index in range(6)] == [0, 0, 0, 1, 1, 1]


def test_a_set_that_is_another(tmp_path, split_folder):
  source = {"train": FolderSource(split_folder, "train")}
  prepare_splits(source, "x", tmp_path, Pictures(30, quality=80))
  there = f"^{tmp_path}/x/1.0.0 is there already, from "
  for pictures, other in (
    (Pictures(30), "--quality 80"),
    (Pictures(20, quality=80), "--max-side 30"),
  ):
    with pytest.raises(ValueError, match=f"{there}{other}: choose another"):
      prepare_splits(source, "x", tmp_path, pictures)
  (split_folder / "train" / "anemone" / "new.jpg").write_bytes(plain((1, 2, 3)))
  more = {"train": FolderSource(split_folder, "train")}
  with pytest.raises(ValueError, match=f"{there}other data"):
    prepare_splits(more, "x", tmp_path, Pictures(30, quality=80))


def test_of_two_at_once_one_goes_on(tmp_path, split_folder):
  """A lock is of a process: the other one is a real one."""
  source = {"train": FolderSource(split_folder, "train")}
  folder = tmp_path / "x" / "1.0.0.partial"
  folder.mkdir(parents=True)
  hold = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); "
    "fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
  )
  with subprocess.Popen(
    [sys.executable, "-c", hold, folder / ".lock"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:
    other.stdout.readline()
    with pytest.raises(ValueError, match="is being written by another process"):
      prepare_splits(source, "x", tmp_path, Pictures())
    other.communicate()
  prepare_splits(source, "x", tmp_path, Pictures())


def odd_class(tmp_path):
  images = np.zeros((2, 4, 4, 3), np.uint8)
  return ArraySource(images, np.array([0, 1]), ["a", "b "])


def no_image(tmp_path):
  for name in "ab":
    (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / name / "0.jpg").write_bytes(b"broken")
  return FolderSource(tmp_path / "in", "train")


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
  ("source", "name", "split", "expected"),
  [
    (odd_class, "x", "train", "the class 'b ' has spaces at an end"),
    (no_image, "x", "train", "all 2 images of a split are broken"),
    (no_image, "x", "my split", "'my split' cannot be a split"),
    (no_image, "digits", "train", "cannot be called 'digits'"),
    (no_image, "Photos", "train", "cannot be called 'Photos'"),
    (no_image, "old", "train", "old is a set already, with 3.0.2"),
  ],
)
def test_what_cannot_be(tmp_path, source, name, split, expected):
  (tmp_path / "old" / "3.0.2").mkdir(parents=True)
  with pytest.raises(ValueError, match=expected):
    prepare_splits(
      {split: source(tmp_path)}, name, tmp_path, Pictures(), on_error="skip"
    )


@pytest.mark.parametrize(
  ("names", "kind"),
  [
    (["a/1.jpg", "b/1.jpg"], "folder"),
    (["train/a/1.jpg"], "folder"),
    (["train-000.tar"], "webdataset"),
    (["train/000.tar"], "webdataset"),
    (["data/train-00000-of-00001.parquet"], "parquet"),
    (["train/state.json", "dataset_dict.json"], "parquet"),
  ],
)
def test_kinds_of_folders(tmp_path, names, kind):
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert discovery.kind_of(str(tmp_path)) == kind


@pytest.mark.parametrize(
  ("root", "kind"),
  [
    ("hf-hub:a/b", "hf-hub:a/b"),
    ("a/labels.CSV", "manifest"),
    ("a.npz", "npz"),
    ("x-{00..12}.tar", "webdataset"),
    ("nowhere", "folder"),
  ],
)
def test_kinds_of_paths(root, kind):
  assert discovery.kind_of(root) == kind
