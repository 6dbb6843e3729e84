"""A folder of photographs: its classes, its parts, and what is wrong in it."""

import collections
import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
from PIL import Image
import pytest

from flax_resnet import data
from flax_resnet.data.folder import FolderSource
from tests.recipes import ROOT

COUNTS = {"anemone": 10, "큰 튤립": 15, "wild rose": 5}
ARGUMENTS = {
  "name": "folder",
  "data_dir": None,
  "train_split": "train",
  "eval_split": "val",
  "image_size": 8,
  "random_resized_crop": False,
  "center_crop_fraction": 1.0,
  "in_memory": False,
  "num_threads": 2,
  "num_classes": 3,
}


def picture(colour, kind="JPEG"):
  file = io.BytesIO()
  Image.new("RGB", (12, 10), colour).save(file, kind, quality=95)
  return file.getvalue()


def fill(folder, counts, first=0):
  """The colour of an image says which one it is: (number, class, 0)."""
  for label, name in enumerate(sorted(counts)):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + counts[name]):
      path = folder / name / f"사진 {number:02}.jpg"
      path.write_bytes(picture((8 * number, 60 * label, 0)))


@pytest.fixture
def undivided(tmp_path):
  fill(tmp_path, COUNTS)
  return tmp_path


@pytest.fixture
def divided(tmp_path):
  fill(tmp_path / "train", COUNTS)
  fill(tmp_path / "val", dict.fromkeys(COUNTS, 3), first=20)
  return tmp_path


def load(root, **changes):
  return data.load(root=str(root), **(ARGUMENTS | changes))


def drawn(batch):
  """Returns (number, class) of the images that count, as their colour says."""
  colours = batch["image"][batch["mask"]].mean((1, 2))
  return np.round(colours[:, 0] / 8), np.round(colours[:, 1] / 60)


def test_labels_are_those_of_the_folders(divided):
  dataset = load(divided)
  assert dataset.class_names == sorted(COUNTS)
  assert (len(dataset.train), len(dataset.eval)) == (30, 9)
  for batch in (
    next(dataset.train.train_batches(batch_size=30, seed=0)),
    next(dataset.eval.eval_batches(batch_size=9)),
  ):
    np.testing.assert_array_equal(drawn(batch)[1], batch["label"])


@pytest.mark.parametrize("seed", range(10))
def test_parts_of_an_undivided_folder_have_all_classes_alike(undivided, seed):
  parts = [
    FolderSource(undivided, split, seed=seed)
    for split in ("train[:80%]", "train[80%:]")
  ]
  names = [{p.name(i) for i in range(len(p))} for p in parts]
  assert not names[0] & names[1]
  assert names[0] | names[1] == {str(path) for path in undivided.rglob("*.jpg")}
  for part, share in zip(parts, (0.8, 0.2), strict=True):
    labels = collections.Counter(part[i]["label"] for i in range(len(part)))
    for label, name in enumerate(sorted(COUNTS)):
      assert abs(labels[label] - share * COUNTS[name]) <= 1


def test_the_seed_chooses_the_parts(undivided):
  def part(seed):
    source = FolderSource(undivided, "train[80%:]", seed=seed)
    return [source.name(i) for i in range(len(source))]

  assert part(0) == part(0)
  assert set(part(0)) != set(part(1))


def test_a_whole_split_is_in_the_order_of_its_names(divided):
  source = FolderSource(divided, "val")
  names = [source.name(i) for i in range(len(source))]
  assert names == sorted(names)


def test_other_files_and_hidden_ones_are_left_alone(divided):
  (divided / "train" / ".cache").mkdir()
  (divided / "train" / "anemone" / "notes.txt").write_text("pretty")
  (divided / "train" / "anemone" / "._00.jpg").write_bytes(b"of a Mac")
  (divided / "train" / "anemone" / "more").mkdir()
  (divided / "train" / "anemone" / "more" / "0.PNG").write_bytes(
    picture((0, 0, 0), "PNG")
  )
  assert len(load(divided).train) == 31


def test_a_class_that_val_lacks_stops_or_keeps_the_other_labels(divided):
  for path in (divided / "val" / "anemone").iterdir():
    path.unlink()
  with pytest.raises(ValueError, match="anemone has no images .*: remove it"):
    load(divided)
  (divided / "val" / "anemone").rmdir()
  with pytest.raises(ValueError, match="lacks classes .*trained on: anemone"):
    load(divided)
  batch = next(load(divided, on_error="skip").eval.eval_batches(batch_size=9))
  np.testing.assert_array_equal(
    batch["label"][batch["mask"]], [1] * 3 + [2] * 3
  )
  np.testing.assert_array_equal(drawn(batch)[1], [1] * 3 + [2] * 3)


def test_an_empty_class_stops_or_keeps_its_label(divided):
  (divided / "train" / "b empty").mkdir()
  with pytest.raises(ValueError, match="b empty has no images .*: remove it"):
    load(divided, num_classes=4)
  skipping = load(divided, num_classes=4, on_error="skip")
  batch = next(skipping.train.train_batches(batch_size=30, seed=0))
  assert set(batch["label"]) == {0, 2, 3}


def one_class(root):
  for name in sorted(COUNTS)[1:]:
    for path in (root / "train" / name).iterdir():
      path.unlink()
    (root / "train" / name).rmdir()


def no_class(root):
  for path in (root / "train").rglob("*.jpg"):
    path.rename(root / "train" / path.name)
  for path in (root / "train").iterdir():
    if path.is_dir():
      path.rmdir()


def another_class(root):
  (root / "val" / "lily").mkdir()


@pytest.mark.parametrize(
  ("spoil", "changes", "error", "message"),
  [
    (one_class, {}, ValueError, r"holds 1 folder of a class \(anemone\): the"),
    (no_class, {}, ValueError, r"holds 0 folders of a class \(none\): there"),
    (another_class, {}, ValueError, "val has classes .* not trained on: lily"),
    (None, {"eval_split": "dev"}, ValueError, "no folder 'dev' .* train, val"),
    (None, {"eval_split": "val[:0]"}, ValueError, r"no split 'val\[:0\]'"),
    (None, {"eval_split": "val[:9"}, ValueError, r"no split 'val\[:9'"),
    (None, {"num_classes": 7}, ValueError, "3 classes and the model 7"),
    (None, {"root": None}, ValueError, "root is None: give where the folder"),
    (None, {"root": "/no/such"}, FileNotFoundError, "no folder: give the path"),
    (None, {"num_workers": -1}, ValueError, "num_workers is -1: use 0"),
    (None, {"crop_scale": (0.5, 0.2)}, ValueError, "crop_scale is .*smaller"),
  ],
)
def test_what_is_wrong_with_a_folder_is_told(
  divided, spoil, changes, error, message
):
  if spoil:
    spoil(divided)
  with pytest.raises(error, match=message):
    data.load(**({"root": str(divided)} | ARGUMENTS | changes))


def unreadable(path):
  path.unlink()
  os.symlink("nowhere", path)  # Permissions do not stop root.


def test_a_file_takes_the_memory_of_its_bytes(divided):
  source = FolderSource(divided, "train")
  tracemalloc.start()
  size = max(len(source[i]["image"]) for i in range(len(source)))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < size + 100_000


BROKEN = {
  "the file is empty": lambda path: path.write_bytes(b""),
  "broken: .*": lambda path: path.write_bytes(path.read_bytes()[:300]),
  "a GIF under another name": lambda path: path.write_bytes(
    picture((0, 0, 0), "GIF")
  ),
  "not an image": lambda path: path.write_text("no image"),
  "cannot be read: No such file": unreadable,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_image_stops_with_its_name(divided, what):
  path = divided / "train" / "큰 튤립" / "사진 04.jpg"
  BROKEN[what](path)
  batches = load(divided).train.train_batches(batch_size=30, seed=0)
  with pytest.raises(ValueError, match=f"큰 튤립/사진 04.jpg: .*{what}"):
    next(batches)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("random_resized_crop", [False, True])
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.filterwarnings("ignore:skipped")
def test_a_broken_image_is_skipped_and_counted(
  divided, what, random_resized_crop, in_memory
):
  """Trained on is the next one, with its own label; evaluated is none."""
  first = divided / "train" / "anemone" / "사진 09.jpg"  # The last anemone.
  BROKEN[what](first)
  BROKEN[what](divided / "val" / "wild rose" / "사진 21.jpg")
  dataset = load(
    divided,
    on_error="skip",
    in_memory=in_memory,
    random_resized_crop=random_resized_crop,
  )
  dataset.train.skipped.take()  # Those of reading the set into memory.
  for _ in range(2):
    batch = next(dataset.train.train_batches(batch_size=30, seed=0))
    assert dataset.train.skipped.take() == 1
    numbers, labels = drawn(batch)
    np.testing.assert_array_equal(labels, batch["label"])
    seen = collections.Counter(zip(numbers, labels, strict=True))
    assert seen.pop((0, 1)) == 2  # The first wild rose, for the last anemone.
    assert (9, 0) not in seen
    assert set(seen.values()) == {1}
  (whole,) = dataset.eval.eval_batches(batch_size=9)
  assert whole["mask"].sum() == 8
  assert dataset.eval.skipped.take() == 1
  np.testing.assert_array_equal(drawn(whole)[1], whole["label"][whole["mask"]])


READ = """
import json, sys
from flax_resnet import command, data
if __name__ == "__main__":
  with command.exits():
    loaded = data.load(**json.loads(sys.argv[1]))
    next(loaded.train.train_batches(batch_size=30, seed=0))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_skipped_image_of_any_name_is_one_line(divided, workers):
  """Of a reading process too: its warnings are printed as ours are."""
  broken = divided / "train" / "anemone" / "\x1b[2J\n사진.jpg"
  broken.write_bytes(b"no image")
  arguments = ARGUMENTS | {
    "root": str(divided),
    "on_error": "skip",
    "num_workers": workers,
  }
  (divided / "read.py").write_text(READ)
  ended = subprocess.run(
    [sys.executable, divided / "read.py", json.dumps(arguments)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.stderr.count("\n") == 1, ended.stderr
  line = ended.stderr
  assert line.startswith("warning: skipped ")
  assert r"\x1b[2J 사진.jpg: " in line


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_folder_of_broken_images_does_not_hang(divided):
  for path in (divided / "train").rglob("*.jpg"):
    path.write_bytes(b"no image")
  with pytest.raises(ValueError, match="all 30 images are broken"):
    next(
      load(divided, on_error="skip").train.train_batches(batch_size=4, seed=0)
    )
