"""Shards of a webdataset: read by index, in the order of any other source."""

import io
import json
import os
import pickle
import tarfile
import warnings

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import packed, shards
from flax_resnet.data.identity import identity
from flax_resnet.data.order import Order
from flax_resnet.data.sources import Columns
from flax_resnet.data.webdataset import WebDatasetSource
from flax_resnet.errors import ImageError, InputError
from tests.data.images import number_and_class, plain

CLASSES = ["anemone", "rose", "큰 튤립"]


def write(path, members):
  """Writes a tar file of (name, content)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return path


def members_of(numbers, label=lambda n: str(n % 3).encode(), extension="cls"):
  """Yields images, whose colors are their number and class, with labels."""
  for n in numbers:
    yield f"{n:06}.jpg", plain((8 * n, 60 * (n % 3), 0))
    yield f"{n:06}.{extension}", label(n)


@pytest.fixture
def root(tmp_path, monkeypatch):
  """Five shards of 30 images to train on, and one of 9 to evaluate on."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tmp_path / "shards"
  for shard in range(5):
    numbers = range(6 * shard, 6 * shard + 6)
    write(folder / f"set-train-{shard:03}.tar", members_of(numbers))
  write(folder / "set-val-000.tar", members_of(range(9)))
  (folder / "classes.txt").write_text("\n".join(CLASSES))
  return folder


def section(root, **changes):
  return {
    "name": "webdataset",
    "root": str(root),
    "train_split": "train",
    "eval_split": "val",
    "image_size": 8,
    "num_threads": 2,
  } | changes


def load(root, num_classes=3, **changes):
  return data.load(section(root, **changes), num_classes=num_classes)


def test_shards_are_read_by_index(root):
  dataset = load(root)
  assert dataset.class_names == CLASSES
  assert (len(dataset.train), len(dataset.eval)) == (30, 9)
  source = dataset.train.source
  for n in (17, 0, 29, 5, 6):
    expected = {"image": plain((8 * n, 60 * (n % 3), 0)), "label": n % 3}
    assert source[n] == expected
  assert source.name(17) == f"000017.jpg in {root}/set-train-002.tar"
  (batch,) = dataset.eval.eval_batches(batch_size=9)
  numbers, labels = number_and_class(batch)
  np.testing.assert_array_equal(numbers, np.arange(9))
  np.testing.assert_array_equal(labels, batch["label"])
  again = pickle.loads(pickle.dumps(source))
  assert again[7] == source[7]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_the_order_is_that_of_the_seed_and_not_of_a_buffer(root, num_threads):
  """From any step on, as of any other source; a batch is of all shards."""
  train = load(root, num_threads=num_threads).train
  order = Order(30, 5, 10)
  for first_step in (0, 4, 7):
    batches = train.train_batches(batch_size=10, seed=5, first_step=first_step)
    for step in range(first_step, first_step + 4):
      numbers, _ = number_and_class(next(batches))
      expected = order(np.arange(10 * step, 10 * step + 10))
      np.testing.assert_array_equal(numbers, expected)
  first = order(np.arange(10)) // 6
  assert len(set(first.tolist())) == 5


PATTERNS = {
  "set-train-{000..004}.tar": 30,
  "set-train-{000..001}.tar": 12,
  "set-{train-{000..004},val-000}.tar": 30,
  "set-train-00{0,3}.tar": 12,
  "set-train-003.tar": 6,
}


@pytest.mark.parametrize(("pattern", "count"), PATTERNS.items())
def test_a_pattern_names_shards(root, pattern, count):
  source = WebDatasetSource(root / pattern, "train", Columns())
  assert len(source) == count


def test_braces_are_those_of_a_shell():
  for pattern, expected in {
    "a": ["a"],
    "{a,b}{1..3}": ["a1", "a2", "a3", "b1", "b2", "b3"],
    "x{08..10}.tar": ["x08.tar", "x09.tar", "x10.tar"],
    "{a,{b,c{1,2}}}d": ["ad", "bd", "c1d", "c2d"],
    "{3..1}": ["3", "2", "1"],
    "{}": [""],
    "{a": ["{a"],
    "a}": ["a}"],
  }.items():
    assert list(shards.expand(pattern)) == expected, pattern


def test_splits_may_be_folders_and_parts(root):
  for path in root.glob("*.tar"):
    (root / path.name.split("-")[1]).mkdir(exist_ok=True)
    path.rename(root / path.name.split("-")[1] / path.name[4:].split("-")[1])
  assert [len(s) for s in (load(root).train, load(root).eval)] == [30, 9]
  splits = {"train_split": "train[:80%]", "eval_split": "train[80%:]"}
  dataset = load(root, **splits)
  for part, count in ((dataset.train, 8), (dataset.eval, 2)):
    labels = [part.source[i]["label"] for i in range(len(part))]
    assert sorted(labels) == [0] * count + [1] * count + [2] * count


@pytest.mark.parametrize(
  ("label", "extension", "expected"),
  [
    (lambda n: f" {n % 3}\n".encode(), "cls", CLASSES),
    (lambda n: CLASSES[n % 3].encode(), "cls", CLASSES),
    (lambda n: json.dumps({"label": n % 3}).encode(), "json", CLASSES),
    (lambda n: json.dumps({"label": CLASSES[n % 3]}).encode(), "JSON", CLASSES),
    (lambda n: str(n % 3 * 2).encode(), "cls", list("01234")),
    (lambda n: "cab"[n % 3].encode(), "cls", list("abc")),
  ],
)
def test_labels(tmp_path, monkeypatch, label, extension, expected):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  root = tmp_path / "shards"
  write(root / "0.tar", members_of(range(9), label, extension))
  if expected is CLASSES:
    (root / "classes.txt").write_text("\n".join(CLASSES))
  source = WebDatasetSource(root, "train", Columns())
  assert source.class_names == expected
  if expected is CLASSES:
    assert [source[i]["label"] for i in range(9)] == [0, 1, 2] * 3
  elif expected == list("abc"):
    assert [source[i]["label"] for i in range(9)] == [2, 0, 1] * 3
  else:
    assert [source[i]["label"] for i in range(9)] == [0, 2, 4] * 3


def test_other_members_are_left_alone(tmp_path, monkeypatch):
  """A .json without a label, if there is a .cls; folders; long names."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  image, long = plain((0, 0, 0)), "x" * 120 + "/" + "y" * 150
  members = [
    ("__note", b"of no key"),
    ("a/b.json", b'{"url": "..."}'),
    ("a/b.Jpeg", image),
    ("a/b.txt", b"a caption"),
    ("a/b.cls", b"1"),
    ("._c.jpg", b"of a Mac"),
    ("only.txt", b"no image"),
    (f"{long}.jpg", image),
    (f"{long}.cls", b"0"),
  ]
  write(tmp_path / "shards" / "0.tar", members)
  with tarfile.open(tmp_path / "shards" / "0.tar", "a") as tar:
    info = tarfile.TarInfo("folder.jpg")
    info.type = tarfile.DIRTYPE
    tar.addfile(info)
  source = WebDatasetSource(tmp_path / "shards", "train", Columns())
  assert [source[i]["label"] for i in range(len(source))] == [1, 0]
  names = [source.name(i).partition(" in ")[0] for i in range(2)]
  assert names == ["a/b.Jpeg", f"{long}.jpg"]


@pytest.fixture
def scans(monkeypatch):
  """Shards whose members are looked at."""
  found, records = [], shards._records
  monkeypatch.setattr(
    shards, "_records", lambda *args: found.append(args[0]) or records(*args)
  )
  return found


def test_the_index_is_made_once_and_anew_when_a_shard_has_changed(root, scans):
  first = WebDatasetSource(root, "train", Columns())
  (index,) = root.glob(".index-*")
  for _ in range(2):
    again = WebDatasetSource(root, "train", Columns())
    assert identity(again) == identity(first)
  assert len(scans) == 5
  write(root / "set-train-001.tar", members_of(range(6, 10)))
  with pytest.raises(ValueError, match="001.tar has changed since it was open"):
    first[7]
  with pytest.warns(UserWarning) as warned:
    assert len(WebDatasetSource(root, "train", Columns())) == 28
  assert [str(w.message) for w in warned] == [
    f"the shards have changed since their index {index} was made: it is made "
    "again"
  ]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert len(WebDatasetSource(root, "train", Columns())) == 28
  assert len(scans) == 10
  # Labels of another key are others.
  WebDatasetSource(root, "train", Columns(label_column="other"))
  assert len(scans) == 15
  index.write_bytes(index.read_bytes()[:-1])
  assert len(WebDatasetSource(root, "train", Columns())) == 28


def test_where_nothing_can_be_written_the_index_is_in_the_cache(
  root, scans, monkeypatch, tmp_path
):
  write_columns = packed.write_columns

  def refuse(path, *args):
    if path.parent == root:
      raise OSError("a read-only file system")
    write_columns(path, *args)

  monkeypatch.setattr(shards, "write_columns", refuse)
  for _ in range(2):
    assert len(WebDatasetSource(root, "train", Columns())) == 30
  assert len(scans) == 5
  assert not list(root.glob(".index-*"))
  (index,) = (tmp_path / "cache" / "flax_resnet" / "indexes").iterdir()
  assert index.name.startswith("webdataset-")


IMAGE = plain((0, 0, 0))
MEMBERS = {
  "0.jpg in SHARD has no label: add 0.cls, or 0.json with 'label' in it, next "
  "to it": [("0.jpg", IMAGE), ("1.cls", b"1")],
  "SHARD has several images of '0', 0.jpg and 0.png: leave one": [
    ("0.jpg", IMAGE),
    ("0.png", IMAGE),
    ("0.cls", b"1"),
  ],
  "0.cls in SHARD holds no label: it is empty": [
    ("0.jpg", IMAGE),
    ("0.cls", b" \n"),
  ],
  "0.json in SHARD holds no label ('label'): a .cls member": [
    ("0.jpg", IMAGE),
    ("0.json", b'{"other": 1}'),
  ],
  "0.json in SHARD holds no label (label is [1]): a": [
    ("0.jpg", IMAGE),
    ("0.json", b'{"label": [1]}'),
  ],
  "SHARD hold no images (.apng, ": [("0.txt", b"text")],
  "has shards of 1 class (0): there must be 2 at least": [
    ("0.jpg", IMAGE),
    ("0.cls", b"0"),
  ],
}


@pytest.mark.parametrize(("expected", "members"), MEMBERS.items())
def test_members_that_cannot_be(tmp_path, monkeypatch, expected, members):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  shard = write(tmp_path / "0.tar", members)
  with pytest.raises(InputError) as error:
    load(shard)
  assert expected in str(error.value).replace(str(shard), "SHARD")


def test_a_label_that_is_no_class(root):
  write(root / "set-val-000.tar", members_of(range(3, 5), lambda n: b"%d" % n))
  with pytest.raises(InputError) as error:
    load(root)
  assert str(error.value) == (
    f"config.data: 000003.jpg in {root}/set-val-000.tar has the label '3', "
    "which is none of the classes: anemone, rose, 큰 튤립"
  )


def test_a_shard_that_is_cut_anywhere_is_found(root):
  """Within a member, within a header and between two members."""
  shard = root / "set-train-002.tar"
  whole = shard.read_bytes()
  end = max(i for i in range(0, len(whole), 512) if any(whole[i : i + 512]))
  cuts = [*range(512, end + 512, 512), 700, end - 300, end + 100]
  for cut in cuts:
    shard.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="002.tar is cut short, or no tar"):
      WebDatasetSource(root, "train", Columns())
  # With a damaged header an archive ends.
  damaged = bytearray(whole)
  damaged[end - 512 + 150] ^= 1
  for content in (bytes(damaged), b"", b"no tar file" * 100):
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="002.tar"):
      WebDatasetSource(root, "train", Columns())


PLACES = {
  "root is no, where there is no folder: give": ("no", "train"),
  "root is set-train-{000..006}.tar, of which set-train-005.tar, "
  "set-train-006.tar are not there": ("set-train-{000..006}.tar", "train"),
  "has no shards of the split 'dev': there is train, val; a split is a folder "
  "dev, or a word in the names of files, dev-000000.tar": (".", "dev"),
  "has no shards of the split 'train': there is no .tar file": ("..", "train"),
}


@pytest.mark.parametrize(("expected", "where"), PLACES.items())
def test_places_that_cannot_be(root, monkeypatch, expected, where):
  monkeypatch.chdir(root)
  path, split = where
  with pytest.raises((ValueError, OSError)) as error:
    WebDatasetSource(path, split, Columns())
  assert expected in str(error.value)


def test_broken_images_are_named(root):
  content = plain((0, 0, 0))
  members = [("0.jpg", b""), ("0.cls", b"0"), ("1.jpg", content[:300])]
  write(root / "set-train-000.tar", [*members, ("1.cls", b"1")])
  train = load(root).train
  with pytest.raises(ImageError, match="the file is empty"):
    train.source[0]
  with pytest.raises(ImageError, match=".jpg in .*train-000.tar: the "):
    list(train.eval_batches(batch_size=30))
  os.remove(root / "set-train-001.tar")
  with pytest.raises(ImageError, match="the shard cannot be read: No such"):
    train.source[3]
