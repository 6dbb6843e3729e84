"""Scans of folders, and those that are kept."""

import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from flax_resnet.data import scan as scans
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.identity import identity
from flax_resnet.data.sources import stratified_order
from tests.data.images import COUNTS
from tests.recipes import ROOT


def names_of(scan):
  return [scan.names[i] for i in range(len(scan.names))]


@pytest.fixture
def keep(monkeypatch, tmp_path):
  """Keeps every scan, also of folders that have just changed."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(scans, "MIN_KEPT", 1)
  monkeypatch.setattr(scans, "_UNSURE", -60)
  return tmp_path / "cache" / "flax_resnet" / "indexes"


@pytest.fixture
def walks(monkeypatch):
  """Folders that are walked through."""
  found, walk = [], scans.walk
  monkeypatch.setattr(
    scans, "walk", lambda *args: found.append(args[0]) or walk(*args)
  )
  return found


def test_a_scan_is_kept_until_a_folder_changes(split_folder, keep, walks):
  train = split_folder / "train"
  (train / "anemone" / "more" / "inner").mkdir(parents=True)
  (train / "anemone" / "note.txt").write_text("pretty")
  first = scans.scan(str(train), sorted(COUNTS))
  assert len(list(keep.iterdir())) == 1
  assert len(walks) == 3
  again = scans.scan(str(train), sorted(COUNTS))
  assert len(walks) == 3
  assert names_of(again) == names_of(first)
  assert again.counts.tolist() == [10, 5, 15]
  assert again.others == first.others == collections.Counter({".txt": 1})
  changes = [
    lambda: (train / "anemone" / "more" / "inner" / "x.jpg").write_bytes(b""),
    lambda: (train / "wild rose" / "사진 00.jpg").unlink(),
    lambda: (train / "anemone" / "more").rename(train / "anemone" / "z"),
  ]
  for change in changes:
    before = names_of(first)
    change()
    first = scans.scan(str(train), sorted(COUNTS))
    assert names_of(first) != before
    assert names_of(first) == names_of(scans.scan(str(train), sorted(COUNTS)))
  # Of other classes, too.
  assert scans.scan(str(train), ["wild rose"]).counts.tolist() == [4]


@pytest.mark.parametrize("other", ["._b.JPG", ".JPG", "b.txt", "b", "b.JPGX"])
def test_one_other_file_among_images_is_left_out(tmp_path, other):
  """Wherever it is in their order."""
  names = ["-a.JPG", "c.JPG", "d.JPG"]
  for name in (*names, other):
    (tmp_path / "class").mkdir(exist_ok=True)
    (tmp_path / "class" / name).write_bytes(b"")
  found = scans.scan(str(tmp_path), ["class"])
  assert names_of(found) == [f"class/{name}" for name in names]
  assert found.others.total() == (other[0] != ".")


def test_a_damaged_index_is_made_again(split_folder, keep, walks):
  source = FolderSource(split_folder, "train")
  (index,) = keep.iterdir()
  index.write_bytes(index.read_bytes()[:-9])
  again = FolderSource(split_folder, "train")
  assert len(walks) == 6
  assert identity(again) == identity(source)


def test_what_has_just_changed_or_is_small_is_not_kept(
  split_folder, keep, monkeypatch
):
  monkeypatch.setattr(scans, "_UNSURE", 2)
  FolderSource(split_folder, "train")
  assert not keep.exists()
  monkeypatch.setattr(scans, "_UNSURE", -60)
  monkeypatch.setattr(scans, "MIN_KEPT", 31)
  FolderSource(split_folder, "train")
  assert not keep.exists()
  monkeypatch.setattr(scans, "MIN_KEPT", 30)
  FolderSource(split_folder, "train")
  assert keep.exists()


def test_a_cache_that_cannot_be_written_is_done_without(
  split_folder, keep, monkeypatch, tmp_path
):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert len(FolderSource(split_folder, "train")) == 30


def test_identities_are_those_of_the_first_version(split_folder):
  """Runs that were begun with it go on."""
  expected = {
    "train": "53beb2915927fdd6",
    "train[:60%]": "3f0abcbf2f89027f",
  }
  found = {
    split: identity(FolderSource(split_folder, split)) for split in expected
  }
  assert found["train"]["classes"] == dict(sorted(COUNTS.items()))
  assert {k: v["sha256"][:16] for k, v in found.items()} == expected


def test_names_of_a_run_may_be_in_another_order(split_folder):
  names = list(reversed(sorted(COUNTS)))
  source = FolderSource(split_folder, "train", class_names=names)
  labels = [source[i]["label"] for i in range(30)]
  assert labels == sorted(labels)
  for i, label in enumerate(labels):
    assert f"/{names[label]}/" in source.name(i)


def test_the_order_of_parts_is_that_of_a_loop_over_classes():
  """As it was written at first: runs that were begun with it go on."""
  labels = np.random.default_rng(0).integers(0, 7, 200)
  rng, ranks = np.random.default_rng(3), np.empty(200)
  for label in range(7):
    (members,) = np.nonzero(labels == label)
    spread = (np.arange(len(members)) + 0.5) / len(members)
    ranks[rng.permutation(members)] = spread
  expected = np.argsort(ranks, kind="stable")
  np.testing.assert_array_equal(stratified_order(labels, 3), expected)


def test_a_folder_that_cannot_be_read_counts_as_empty(
  split_folder, keep, monkeypatch
):
  """And is looked into again."""
  scandir, closed = os.scandir, split_folder / "train" / "anemone" / "closed"
  closed.mkdir()

  def refuse(path):
    if str(path) == str(closed):
      raise PermissionError("permission denied")
    return scandir(path)

  monkeypatch.setattr(scans.os, "scandir", refuse)
  assert len(FolderSource(split_folder, "train")) == 30
  assert not keep.exists()


SENT = """
import json, pickle, sys
import numpy as np
from flax_resnet.data import packed, scan
from flax_resnet.data.folder import FolderSource

packed._SMALL = 0
source = FolderSource(sys.argv[1], sys.argv[2])
sent = pickle.dumps(source)
again = pickle.loads(sent)
print(json.dumps([len(sent), again.name(3), len(again)]))
"""


@pytest.mark.parametrize("split", ["train", "train[:50%]"])
def test_workers_are_sent_no_table(split_folder, split):
  done = subprocess.run(
    [sys.executable, "-c", SENT, split_folder, split],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    check=True,
  )
  source = FolderSource(split_folder, split)
  sent, name, count = json.loads(done.stdout)
  assert (name, count) == (source.name(3), len(source))
  assert sent < 2000
