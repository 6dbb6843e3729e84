"""A folder of photographs: its classes, its parts, and broken images in it."""

import collections
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
from PIL import Image
import pytest

from flax_resnet import data
from flax_resnet.data import decoding
from flax_resnet.data.decoding import decode
from flax_resnet.data.folder import FolderSource
from flax_resnet.errors import ImageError, InputError
from tests.data.images import COUNTS, number_and_class, plain, write_folder
from tests.recipes import ROOT


def section(root, **changes):
  return {
    "name": "folder",
    "root": str(root),
    "train_split": "train",
    "eval_split": "val",
    "image_size": 8,
    "num_threads": 2,
  } | changes


def load(root, num_classes=3, **changes):
  return data.load(section(root, **changes), num_classes=num_classes)


def test_labels_are_those_of_the_folders(split_folder):
  dataset = load(split_folder)
  assert dataset.class_names == sorted(COUNTS)
  assert (len(dataset.train), len(dataset.eval)) == (30, 9)
  for batch in (
    next(dataset.train.train_batches(batch_size=30, seed=0)),
    next(dataset.eval.eval_batches(batch_size=9)),
  ):
    np.testing.assert_array_equal(number_and_class(batch)[1], batch["label"])


def test_parts_of_an_undivided_folder_have_all_classes_alike(tmp_path):
  write_folder(tmp_path, COUNTS)
  chosen = set()
  for seed in range(10):
    splits = {"train_split": "train[:80%]", "eval_split": "train[80%:]"}
    dataset = load(tmp_path, split_seed=seed, **splits)
    parts = dataset.train.source, dataset.eval.source
    names = [{p.name(i) for i in range(len(p))} for p in parts]
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(map(str, tmp_path.rglob("*.jpg")))
    for part, share in zip(parts, (0.8, 0.2), strict=True):
      labels = collections.Counter(part[i]["label"] for i in range(len(part)))
      for label, name in enumerate(sorted(COUNTS)):
        assert abs(labels[label] - share * COUNTS[name]) <= 1
    chosen.add(frozenset(names[1]))
  assert len(chosen) == 10  # The seed chooses the parts.


def test_a_whole_split_is_in_the_order_of_its_names(split_folder):
  source = FolderSource(split_folder, "val")
  names = [source.name(i) for i in range(len(source))]
  assert names == sorted(names)


@pytest.mark.filterwarnings("ignore:.*files left out")
def test_other_files_and_hidden_ones_are_left_alone(split_folder):
  train = split_folder / "train"
  (train / ".cache").mkdir()
  (train / "anemone" / "notes.txt").write_text("pretty")
  (train / "anemone" / "._00.jpg").write_bytes(b"of a Mac")
  (train / "anemone" / "more").mkdir()
  (train / "anemone" / "more" / "0.PNG").write_bytes(plain((0, 0, 0), "PNG"))
  assert len(FolderSource(split_folder, "train")) == 31


ENDINGS = (
  *("apng", "AVIF", "avifs", "bmp", "gif", "jfif", "jpe", "jpeg", "JPG", "pbm"),
  *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
)


@pytest.mark.parametrize("ending", [*ENDINGS, "heic", "heif"])
def test_every_ending_of_a_format_is_looked_for(split_folder, ending):
  if ending.startswith("hei"):
    pytest.importorskip("pillow_heif")
  name = split_folder / "train" / "anemone" / f"0.{ending}"
  Image.new("RGB", (12, 10)).save(name)
  source = FolderSource(split_folder, "train")
  assert len(source) == 31
  assert decode(source[0]["image"], 3).shape == (10, 12, 3)


def test_readers_that_start_programs_are_not_used(split_folder):
  """Nor any other that Pillow has."""
  others = set(Image.registered_extensions()) - set(decoding.ENDINGS)
  assert {".eps", ".ps", ".psd", ".ico", ".jp2"} < others
  for ending in (".eps", ".ico"):
    name = split_folder / "train" / "anemone" / f"0{ending}"
    Image.new("RGB", (16, 16)).save(name)
  with pytest.warns(UserWarning, match=": .eps 1, .ico 1$"):
    assert len(FolderSource(split_folder, "train")) == 30


def test_larger_images_are_read_where_a_key_says_so(split_folder):
  first = split_folder / "train" / "anemone" / "0.png"
  Image.new("L", (1001, 10)).save(first)
  for crop, in_memory in ((True, False), (True, True), (False, False)):
    options = {"random_resized_crop": crop, "in_memory": in_memory}
    train = load(split_folder, max_pixels=10_010, **options).train
    next(train.train_batches(batch_size=31, seed=0))
    train = load(split_folder, max_pixels=10_009, **options).train
    with pytest.raises(ImageError, match="10 x 1001 pixels, more than max_pix"):
      next(train.train_batches(batch_size=31, seed=0))


def test_a_class_without_images_stops_or_keeps_the_labels(split_folder):
  (split_folder / "train" / "b empty").mkdir()
  for path in (split_folder / "val" / "anemone").iterdir():
    path.unlink()
  (split_folder / "val" / "anemone").rmdir()
  with pytest.raises(InputError):
    load(split_folder, num_classes=4)
  dataset = load(split_folder, num_classes=4, on_error="skip")
  batch = next(dataset.train.train_batches(batch_size=30, seed=0))
  assert set(batch["label"]) == {0, 2, 3}
  batch = next(dataset.eval.eval_batches(batch_size=9))
  labels = batch["label"][batch["mask"]]
  np.testing.assert_array_equal(labels, [2] * 3 + [3] * 3)
  np.testing.assert_array_equal(number_and_class(batch)[1] + 1, labels)


def test_a_file_takes_the_memory_of_its_bytes(split_folder):
  source = FolderSource(split_folder, "train")
  tracemalloc.start()
  size = max(len(source[i]["image"]) for i in range(len(source)))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < size + 100_000


def unreadable(path):
  path.unlink()
  os.symlink("nowhere", path)  # Permissions do not stop root.


BROKEN = {
  "empty": lambda path: path.write_bytes(b""),
  "half": lambda path: path.write_bytes(path.read_bytes()[:300]),
  "GIF": lambda path: path.write_bytes(plain((0, 0, 0), "GIF")),
  "text": lambda path: path.write_text("no image"),
  "unreadable": unreadable,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_stops_with_its_name(split_folder, kind):
  path = split_folder / "train" / "큰 튤립" / "사진 04.jpg"
  BROKEN[kind](path)
  batches = load(split_folder).train.train_batches(batch_size=30, seed=0)
  with pytest.raises(ImageError, match="큰 튤립/사진 04.jpg: "):
    next(batches)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("random_resized_crop", [False, True])
@pytest.mark.filterwarnings("ignore:skipped")
def test_a_broken_image_is_skipped_and_counted(
  split_folder, random_resized_crop, in_memory
):
  """Trained on is the next one, with its own label; evaluated is none."""
  # The last anemone.
  (split_folder / "train" / "anemone" / "사진 09.jpg").write_text("no image")
  (split_folder / "val" / "wild rose" / "사진 21.jpg").write_text("no image")
  dataset = load(
    split_folder,
    on_error="skip",
    in_memory=in_memory,
    random_resized_crop=random_resized_crop,
  )
  assert dataset.train.skips
  dataset.train.skipped.take()  # Those of reading the set into memory.
  for _ in range(2):
    batch = next(dataset.train.train_batches(batch_size=30, seed=0))
    assert dataset.train.skipped.take() == 1
    numbers, labels = number_and_class(batch)
    np.testing.assert_array_equal(labels, batch["label"])
    counts = collections.Counter(zip(numbers, labels, strict=True))
    assert counts.pop((0, 1)) == 2  # The first wild rose, for the last anemone.
    assert (9, 0) not in counts
    assert set(counts.values()) == {1}
  (whole,) = dataset.eval.eval_batches(batch_size=9)
  assert list(np.flatnonzero(~whole["mask"])) == [4]
  assert dataset.eval.skipped.take() == 1
  labels = whole["label"][whole["mask"]]
  np.testing.assert_array_equal(number_and_class(whole)[1], labels)


READ = """
import hashlib, json, sys
from flax_resnet import data
from flax_resnet.cli.flags import exit_codes

def read(num_workers):
  section = json.loads(sys.argv[1]) | {"num_workers": num_workers}
  train = data.load(section, num_classes=3).train
  batches = train.train_batches(batch_size=31, seed=0)
  for _ in range(2):
    print(hashlib.sha256(next(batches)["image"]).hexdigest())

if __name__ == "__main__":
  with exit_codes():
    for num_workers in (0, 1):
      read(num_workers)
"""


KILL = """
import json, multiprocessing, sys
from flax_resnet import data
from flax_resnet.cli.flags import exit_codes

def read():
  train = data.load(json.loads(sys.argv[1]), num_classes=3).train
  batches = train.train_batches(batch_size=31, seed=0)
  next(batches)
  multiprocessing.active_children()[0].kill()
  for batch in batches:
    pass

if __name__ == "__main__":
  with exit_codes():
    read()
"""


def test_a_killed_worker_process_is_one_sentence(split_folder):
  (split_folder / "kill.py").write_text(KILL)
  options = json.dumps(section(split_folder, num_workers=1))
  ended = subprocess.run(
    [sys.executable, split_folder / "kill.py", options],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert (ended.returncode, ended.stdout) == (1, "")
  assert ended.stderr == (
    "error: a process that reads images was killed, as the system does when "
    "memory runs out: use a smaller config.data.num_workers; a run continues "
    "from its last checkpoint\n"
  )


def test_a_worker_process_reads_and_warns_as_this_one(split_folder):
  """The same images; an image of any name that is skipped is one line."""
  broken = split_folder / "train" / "anemone" / "\x1b[2J\n사진.jpg"
  broken.write_bytes(b"no image")
  (split_folder / "read.py").write_text(READ)
  options = {"on_error": "skip", "random_resized_crop": True}
  arguments = json.dumps(section(split_folder, **options))
  ended = subprocess.run(
    [sys.executable, split_folder / "read.py", arguments],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  one, other, *by_worker = ended.stdout.splitlines()
  assert by_worker == [one, other]
  assert one != other
  lines = ended.stderr.splitlines()
  assert len(lines) == 2, ended.stderr
  for line in lines:
    assert line.startswith("warning: skipped ")
    assert r"\x1b[2J 사진.jpg: " in line


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_folder_of_broken_images_does_not_hang(split_folder):
  for path in (split_folder / "train").rglob("*.jpg"):
    path.write_bytes(b"no image")
  train = load(split_folder, on_error="skip").train
  with pytest.raises(ImageError, match="all 30"):
    next(train.train_batches(batch_size=4, seed=0))
