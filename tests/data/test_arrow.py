"""Parquet and Arrow sets, as `datasets` reads them."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import arrow, discovery, preparation
from flax_resnet.data.identity import identity
from flax_resnet.data.sources import Columns
from flax_resnet.data.tfds import TFDSSource
from flax_resnet.errors import ImageError, InputError
from tests.data.images import (
  COUNTS,
  number_and_class,
  plain,
  write_split_folder,
)
from tests.recipes import ROOT

datasets = pytest.importorskip("datasets")  # Of the extra "hf".
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.deep

ArrowSource = arrow.ArrowSource
CLASSES = ["anemone", "rose", "큰 튤립"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def table(count, labels="class"):
  """Returns a set of images, whose colors are their number and class."""
  numbers = range(count)
  images = [
    {"bytes": plain((8 * n, 60 * (n % 3), 0)), "path": f"{n:02}.jpg"}
    for n in numbers
  ]
  values, feature = {
    "class": ([n % 3 for n in numbers], datasets.ClassLabel(names=CLASSES)),
    "int": ([n % 3 for n in numbers], datasets.Value("int32")),
    "text": ([CLASSES[n % 3] for n in numbers], datasets.Value("string")),
  }[labels]
  features = {"image": datasets.Image(), "label": feature}
  return datasets.Dataset.from_dict(
    {"image": images, "label": values}, datasets.Features(features)
  )


def as_parquet(root, **kinds):
  (root / "data").mkdir(parents=True)
  table(30, **kinds).to_parquet(root / "data" / "train-00000-of-00001.parquet")
  table(9, **kinds).to_parquet(root / "data" / "test-00000-of-00001.parquet")


def as_arrow(root):
  root.mkdir()
  for split, count in (("train", 30), ("test", 9)):
    table(count).save_to_disk(root / "saved")
    (file,) = (root / "saved").glob("*.arrow")
    file.rename(root / f"{split}.arrow")
    for other in (root / "saved").iterdir():
      other.unlink()
  (root / "saved").rmdir()


def as_saved(root):
  splits = {"train": table(30), "test": table(9)}
  datasets.DatasetDict(splits).save_to_disk(root)


KINDS = {
  "parquet": as_parquet,
  "arrow": as_arrow,
  "saved": as_saved,
  "text": lambda root: as_parquet(root, labels="text"),
}


def section(root, **changes):
  return {
    "name": "parquet",
    "root": str(root),
    "train_split": "train",
    "eval_split": "test",
    "image_size": 8,
    "num_threads": 2,
  } | changes


def load(root, num_classes=3, **changes):
  return data.load(section(root, **changes), num_classes=num_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_all_kinds_are_the_same(tmp_path, kind):
  KINDS[kind](tmp_path / "set")
  dataset = load(tmp_path / "set")
  assert dataset.class_names == CLASSES
  assert (len(dataset.train), len(dataset.eval)) == (30, 9)
  for n in (17, 0, 29):
    expected = {"image": plain((8 * n, 60 * (n % 3), 0)), "label": n % 3}
    assert dataset.train.source[n] == expected
  for index in (30, -31):
    with pytest.raises(IndexError):
      dataset.train.source[index]
  batch = next(dataset.train.train_batches(batch_size=30, seed=0))
  numbers, labels = number_and_class(batch)
  assert sorted(numbers) == list(range(30))
  np.testing.assert_array_equal(labels, batch["label"])
  classes = dict.fromkeys(CLASSES, 10)
  assert dataset.identity["train"]["classes"] == classes


def test_the_identity_is_that_of_the_records(tmp_path):
  as_parquet(tmp_path / "set")
  as_saved(tmp_path / "saved")
  one, other = (load(tmp_path / name).identity for name in ("set", "saved"))
  assert one == other
  part = load(tmp_path / "set", train_split="train[:50%]", split_seed=1)
  assert part.identity["train"] != one["train"]
  assert part.identity["train"]["records"] == 15


def test_parts_have_all_classes_alike(tmp_path):
  as_parquet(tmp_path / "set")
  splits = {"train_split": "train[:80%]", "eval_split": "train[80%:]"}
  dataset = load(tmp_path / "set", **splits)
  for part, count in ((dataset.train, 8), (dataset.eval, 2)):
    labels = [part.source[i]["label"] for i in range(len(part))]
    assert sorted(labels) == [0] * count + [1] * count + [2] * count


@pytest.mark.parametrize(
  ("names", "expected"),
  [(None, ["0", "1", "2"]), ("a\nb\nc\nd", ["a", "b", "c", "d"])],
)
def test_integers_are_labels(tmp_path, names, expected):
  as_parquet(tmp_path / "set", labels="int")
  if names:
    (tmp_path / "set" / "classes.txt").write_text(names)
  source = ArrowSource(tmp_path / "set", "train", Columns())
  assert source.class_names == expected
  assert [source[i]["label"] for i in range(6)] == [0, 1, 2, 0, 1, 2]


def test_images_may_be_there_by_their_paths(tmp_path):
  for n in range(9):
    path = tmp_path / "set" / "images" / f"{n}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plain((8 * n, 60 * (n % 3), 0)))
  # As others write it: `to_parquet` embeds what it can read.
  images = [{"bytes": None, "path": f"images/{n}.jpg"} for n in range(9)]
  kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
  columns = {
    "image": pa.array(images, kind),
    "label": [CLASSES[n % 3] for n in range(9)],
  }
  pq.write_table(pa.table(columns), tmp_path / "set" / "train.parquet")
  source = ArrowSource(tmp_path / "set", "train", Columns())
  for n in range(9):
    assert source[n]["image"] == plain((8 * n, 60 * (n % 3), 0))
  (tmp_path / "set" / "images" / "4.jpg").unlink()
  with pytest.raises(ImageError, match="No such file"):
    source[4]


def test_a_gif_without_a_name_is_no_gif_under_another_one(tmp_path):
  images = [
    {"bytes": plain((0, 0, 0), "GIF"), "path": path}
    for path in (None, "a.gif", "a.jpg")
  ]
  features = {"image": datasets.Image(), "label": datasets.Value("int32")}
  whole = datasets.Dataset.from_dict(
    {"image": images, "label": [0, 1, 2]}, datasets.Features(features)
  )
  whole.save_to_disk(tmp_path / "set")
  source = ArrowSource(tmp_path / "set", "train", Columns())
  assert source[0]["image"] == source[1]["image"]
  with pytest.raises(ImageError, match="a GIF under another name"):
    source[2]


def test_an_image_folder_is_a_set(tmp_path):
  write_split_folder(tmp_path / "set")
  (tmp_path / "set" / "val").rename(tmp_path / "set" / "test")
  dataset = load(tmp_path / "set")
  assert dataset.class_names == sorted(COUNTS)
  batch = next(dataset.train.train_batches(batch_size=30, seed=0))
  np.testing.assert_array_equal(number_and_class(batch)[1], batch["label"])


def test_a_class_that_is_called_like_a_split_is_refused(tmp_path):
  for name in ("bus", "car", "train"):
    (tmp_path / "set" / name).mkdir(parents=True)
    for n in range(3):
      path = tmp_path / "set" / name / f"{n}.jpg"
      path.write_bytes(plain((0, 0, 0)))
  with pytest.raises(InputError) as error:
    load(tmp_path / "set", eval_split="train")
  assert str(error.value) == (
    f"config.data: {tmp_path}/set holds the folder 'train', which datasets "
    "takes for a split and leaves out the others (bus, car): use "
    "data.name=folder, or rename it"
  )


def test_images_that_are_missing_are_counted(tmp_path):
  features = datasets.Features(
    {"image": datasets.Image(), "label": datasets.Value("int32")}
  )
  whole = datasets.Dataset.from_dict(
    {"image": [plain((0, 0, 0)), None, None], "label": [0, 1, 2]}, features
  )
  whole.save_to_disk(tmp_path / "set")
  with pytest.raises(InputError) as error:
    load(tmp_path / "set", eval_split="train")
  assert str(error.value) == (
    f"config.data: 2 of 3 records of {tmp_path}/set have no image (the first "
    "is record 1), as in shards where the ending of names changes: use "
    "data.name=webdataset for these, or leave them out"
  )


SECTIONS = {
  "SET has no column 'picture': it has image, label; set image_column to one": {
    "image_column": "picture"
  },
  "SET has no column 'kind': it has image, label; set label_column to one": {
    "label_column": "kind"
  },
  "the column 'label' of SET holds no images but ClassLabel(": {
    "image_column": "label"
  },
  "the column 'image' of SET holds no labels but Image(": {
    "label_column": "image"
  },
  "SET: there is no split 'dev': use one of train, test, or": {
    "eval_split": "dev"
  },
  "SET cannot be read as a set: ValueError: BuilderConfig 'other'": {
    "config_name": "other"
  },
  "root is NONE, where there is no folder: give": {"root": "NONE"},
}


@pytest.mark.parametrize(("expected", "changes"), SECTIONS.items())
def test_sections_that_cannot_be(tmp_path, expected, changes):
  as_parquet(tmp_path / "set")
  with pytest.raises(InputError) as error:
    data.load(section(tmp_path / "set") | changes, num_classes=3)
  said = str(error.value).replace(str(tmp_path / "set"), "SET")
  assert expected in said


def test_what_is_no_set(tmp_path):
  (tmp_path / "set").mkdir()
  with pytest.raises(InputError, match="cannot be read as a set: "):
    load(tmp_path / "set")
  (tmp_path / "set" / "train.parquet").write_bytes(b"no")
  with pytest.raises(InputError, match="cannot be read as a set: "):
    load(tmp_path / "set")


def test_a_label_that_is_no_class_is_refused(tmp_path):
  as_parquet(tmp_path / "set", labels="text")
  (tmp_path / "classes.txt").write_text("anemone\n큰 튤립\n", "utf-8")
  with pytest.raises(InputError) as error:
    load(tmp_path / "set", 2, classes_file=str(tmp_path / "classes.txt"))
  assert str(error.value) == (
    f"config.data: record 1 of train in {tmp_path}/set has the label 'rose', "
    "which is none of the classes: anemone, 큰 튤립"
  )


def test_records_without_a_label_are_refused(tmp_path):
  whole = table(9)
  unlabeled = whole.remove_columns("label").add_column(
    "label", [0, 1, -1, 2, 0, 1, 2, 0, 1]
  )
  unlabeled.save_to_disk(tmp_path / "set")
  with pytest.raises(InputError, match="record 2 of .* has no label"):
    load(tmp_path / "set", eval_split="train")


def test_a_set_of_the_hub_is_asked_for_by_its_name(tmp_path, monkeypatch):
  as_parquet(tmp_path / "set")
  asked, load_dataset = [], datasets.load_dataset

  def ask(name, config_name, **options):
    asked.append((name, config_name, options["revision"]))
    return load_dataset(str(tmp_path / "set"))

  monkeypatch.setattr(datasets, "load_dataset", ask)
  options = {"name": "hf-hub:owner/name@v1.0", "config_name": "small"}
  dataset = load(None, **options)
  assert dataset.class_names == CLASSES
  assert set(asked) == {("owner/name", "small", "v1.0")}
  for name in ("hf-hub:", "hf-hub:../x", "hf-hub:a/b/c", "hf-hub:a/b@"):
    with pytest.raises(InputError, match="cannot be read: use hf-hub:owner"):
      load(None, name=name)


def test_a_folder_is_not_taken_for_a_set_of_the_hub(tmp_path, monkeypatch):
  as_parquet(tmp_path / "owner" / "name")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="would take 'owner/name' in this folde"):
    load(None, name="hf-hub:owner/name")


def test_a_hub_that_cannot_be_reached_is_one_sentence():
  with pytest.raises(
    InputError, match="^config.data: hf-hub:owner/name cannot"
  ):
    load(None, name="hf-hub:owner/name")


WORKER = """
import pickle, sys
import numpy as np
source = pickle.loads(sys.stdin.buffer.read())
print(source[7]["label"], len(source[7]["image"]), len(source))
"""


def test_workers_are_sent_no_rows(tmp_path):
  """A pickled set says where its files are."""
  rng = np.random.default_rng(0)
  whole = datasets.Dataset.from_dict(
    {
      "image": [{"bytes": rng.bytes(100_000), "path": None} for _ in range(30)],
      "label": [n % 3 for n in range(30)],
    },
    datasets.Features(
      {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    ),
  )
  (tmp_path / "set").mkdir()
  whole.to_parquet(tmp_path / "set" / "train.parquet")
  source = ArrowSource(tmp_path / "set", "train", Columns())
  sent = pickle.dumps(source)
  assert len(sent) < 20_000
  done = subprocess.run(
    [sys.executable, "-c", WORKER],
    env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    input=sent,
    stdout=subprocess.PIPE,
    check=True,
  )
  assert done.stdout == b"1 100000 30\n"
  assert identity(source)["records"] == 30


def test_a_prepared_copy(tmp_path):
  """All splits, in their order, byte by byte."""
  as_parquet(tmp_path / "in")
  kind = discovery.kind_of(str(tmp_path / "in"))
  splits = discovery.open_splits(kind, Columns(), root=str(tmp_path / "in"))
  assert {name: len(each) for name, each in splits.items()} == {
    "train": 30,
    "test": 9,
  }
  preparation.prepare_splits(splits, "copy", tmp_path, preparation.Pictures(20))
  for split, source in splits.items():
    copy = TFDSSource("copy", split, str(tmp_path))
    assert copy.class_names == CLASSES
    assert [copy[i] for i in range(len(copy))] == [
      source[i] for i in range(len(source))
    ]
