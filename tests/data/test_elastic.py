"""Data of every kind, read by one, two and four processes: once each."""

import csv

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import preparation
from flax_resnet.data.folder import FolderSource
from tests.data.images import plain
from tests.data.test_webdataset import members_of, write

COUNT = 24  # Of three classes; colors say number and class.
BATCH = 8


def as_folder(root):
  """A folder a class, each with images of its own numbers."""
  for label, name in enumerate("abc"):
    numbers = range(label * COUNT // 3, (label + 1) * COUNT // 3)
    (root / name).mkdir(parents=True)
    for n in numbers:
      (root / name / f"{n:02}.jpg").write_bytes(plain((8 * n, 60 * label, 0)))
  return {"name": "folder", "root": str(root)}


def as_manifest(root):
  as_folder(root)
  with (root / "all.csv").open("w", newline="") as file:
    lines = csv.writer(file)
    lines.writerow(["path", "label"])
    for path in sorted(root.rglob("*.jpg")):
      lines.writerow([path.relative_to(root), path.parent.name])
  return {"name": "manifest", "root": str(root / "all.csv")}


def as_shards(root):
  for shard in range(3):
    first = shard * COUNT // 3
    members = members_of(range(first, first + COUNT // 3))
    write(root / f"{shard}.tar", members)
  return {"name": "webdataset", "root": str(root)}


def as_prepared(root):
  as_folder(root / "in")
  splits = {"train": FolderSource(root / "in", "train")}
  preparation.prepare_splits(splits, "copy", root, preparation.Pictures(20))
  return {"name": "copy", "data_dir": str(root)}


def as_parquet(root):
  datasets = pytest.importorskip("datasets")
  root.mkdir()
  features = {"image": datasets.Image(), "label": datasets.Value("int32")}
  columns = {
    "image": [
      {"bytes": plain((8 * n, 60 * (n % 3), 0)), "path": None}
      for n in range(COUNT)
    ],
    "label": [n % 3 for n in range(COUNT)],
  }
  whole = datasets.Dataset.from_dict(columns, datasets.Features(features))
  whole.save_to_disk(root / "saved")
  return {"name": "parquet", "root": str(root / "saved")}


def as_arrays(root):
  root.mkdir()
  images = np.zeros((COUNT, 8, 8, 3), np.uint8)
  images[..., 0] = 8 * np.arange(COUNT)[:, None, None]
  path = root / "all.npz"
  np.savez(path, train_images=images, train_labels=np.arange(COUNT) % 3)
  return {"name": "npz", "root": str(path)}


KINDS = [
  as_folder,
  as_manifest,
  as_shards,
  as_prepared,
  as_arrays,
  pytest.param(as_parquet, marks=pytest.mark.deep),
]


def numbers_of(batches):
  """Returns the numbers of the images that count, in order, a row a batch."""
  return [
    np.round(batch["image"][batch["mask"]][..., 0].mean((1, 2)) / 8)
    for batch in batches
  ]


@pytest.mark.parametrize("write_set", KINDS)
def test_each_record_is_read_once_by_any_number_of_processes(
  tmp_path, monkeypatch, write_set
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  section = {
    **write_set(tmp_path / "set"),
    "train_split": "train",
    "eval_split": "train",
    "image_size": 8,
    "num_threads": 0,
  }
  steps, whole = COUNT // BATCH, None
  for hosts in (1, 2, 4):
    trained, evaluated = [], []
    for host in range(hosts):
      # Each process opens the set for itself.
      dataset = data.load(section, num_classes=3)
      shard = {
        "batch_size": BATCH,
        "shard_index": host,
        "shard_count": hosts,
      }
      batches = dataset.train.train_batches(seed=1, **shard)
      part = [batch for _, batch in zip(range(steps), batches, strict=False)]
      assert all(len(b["mask"]) == BATCH // hosts for b in part)
      trained.append(numbers_of(part))
      evaluated += numbers_of(dataset.eval.eval_batches(**shard))
    # Side by side, the parts of a step are the batch of one process.
    together = np.concatenate([np.stack(part) for part in trained], axis=1)
    whole = together if whole is None else whole
    np.testing.assert_array_equal(together, whole)
    assert sorted(together.ravel()) == list(range(COUNT))
    assert sorted(np.concatenate(evaluated)) == list(range(COUNT))
