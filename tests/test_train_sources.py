"""train.py, evaluate and check on data that lie elsewhere than in a folder."""

import csv
import io
import json
import shutil
import tarfile

import numpy as np
from PIL import Image
import pytest

from flax_resnet import __main__ as command
from tests import recipes
from tests.runs import rows_of
import train as script

SMALL = {
  "data.image_size": 16,
  "data.train_split": "train",
  "data.eval_split": "val",
  "batch_size": 8,
  "eval_batch_size": 8,
  "num_steps": 4,
  "log_every": 2,
  "eval_every": 4,
  "checkpoint_every": 2,
  "model.name": "cifar_resnet8",
  "model.num_classes": 2,
  **recipes.ONE_BLOCK,
}


def photographs():
  """Yields split, class, name and content of 24 + 6 images of two classes."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("val", 3)):
    for label, name in enumerate(("red", "시안")):
      for i in range(count):
        pixels = rng.integers(0, 120, (24, 30, 3), np.uint8)
        pixels[..., [0] if label == 0 else [1, 2]] += 120
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield split, name, f"{name}{i:02}", file.getvalue()


def as_manifest(root):
  root.mkdir()
  with (root / "all.csv").open("w", newline="", encoding="utf-8") as table:
    lines = csv.writer(table)
    lines.writerow(["path", "label", "split"])
    for split, label, name, content in photographs():
      (root / f"{split}-{name}.jpg").write_bytes(content)
      lines.writerow([f"{split}-{name}.jpg", label, split])
  return "all.csv"


def lose_a_line(root):
  lines = (root / "all.csv").read_text("utf-8").splitlines()
  (root / "all.csv").write_text("\n".join(lines[:5] + lines[6:]), "utf-8")


def as_shards(root, leave_out=()):
  root.mkdir(exist_ok=True)
  (root / "classes.txt").write_text("red\n시안", "utf-8")
  files = list(photographs())
  for shard in ("train-0", "train-1", "val-0"):
    split, number = shard.split("-")
    with tarfile.open(root / f"{shard}.tar", "w") as tar:
      of_split = [f for f in files if f[0] == split]
      for at, (_, label, name, content) in enumerate(of_split):
        if name in leave_out or (split == "train" and at % 2 != int(number)):
          continue
        for ending, data in (("jpg", content), ("cls", label.encode())):
          info = tarfile.TarInfo(f"{name}.{ending}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  return "."


def as_parquet(root):
  datasets = pytest.importorskip("datasets")
  datasets.disable_progress_bars()
  root.mkdir()
  for split, theirs in (("train", "train"), ("val", "val")):
    rows = [row for row in photographs() if row[0] == split]
    features = {
      "image": datasets.Image(),
      "label": datasets.ClassLabel(names=["red", "시안"]),
    }
    datasets.Dataset.from_dict(
      {
        "image": [{"bytes": row[3], "path": row[2]} for row in rows],
        "label": [row[1] for row in rows],
      },
      datasets.Features(features),
    ).to_parquet(root / f"{theirs}.parquet")
  return "."


def lose_a_row(root):
  datasets = pytest.importorskip("datasets")
  path = root / "train.parquet"
  rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(root / "c"))
  rows.select(range(3, 24)).to_parquet(path)
  shutil.rmtree(root / "c")


KINDS = {
  "manifest": (as_manifest, lose_a_line, "val"),
  "webdataset": (as_shards, lambda r: as_shards(r, ("red03",)), "val"),
  "parquet": (as_parquet, lose_a_row, "validation"),
}


@pytest.mark.filterwarnings("ignore:the shards have changed since their index")
@pytest.mark.parametrize(
  "kind",
  [
    "manifest",
    pytest.param("webdataset", marks=pytest.mark.deep),
    pytest.param("parquet", marks=pytest.mark.deep),
  ],
)
def test_a_run_begins_and_goes_on(kind, tmp_path, call_main, monkeypatch):
  """In another place, too; with changed data it is refused."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  write, change, eval_split = KINDS[kind]
  if kind == "parquet":
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
  where = write(tmp_path / "data")
  config = recipes.ROOT / "configs" / "folder.py"

  def overrides(**changes):
    root = tmp_path / changes.pop("folder", "data") / where
    values = {**SMALL, "data.name": kind, "data.root": str(root)}
    values |= {"data.eval_split": eval_split, **changes}
    return [f"--config.{key}={value}" for key, value in values.items()]

  def train(**changes):
    return call_main(
      script.main,
      f"--config={config}",
      f"--workdir={tmp_path / 'run'}",
      *overrides(**changes),
    )

  code, out, err = train()
  assert (code, err) == (0, "")
  assert "24 to train on and 6 to evaluate on" in out
  assert rows_of(tmp_path / "run")[-1]["val/count"] == 6
  code, out, _ = call_main(
    command.main, "check", "--config", config, "--json", *overrides()
  )
  splits = json.loads(out)["splits"]
  assert code == 0
  assert splits["train"]["classes"] == {"red": 12, "시안": 12}
  assert splits[eval_split]["formats"] == {"JPEG RGB": 6}

  (tmp_path / "data").rename(tmp_path / "moved")
  code, out, err = train(folder="moved", num_steps=6)
  assert (code, err) == (0, "")
  assert "continues with data.root (there" in out
  root = f"--config.data.root={tmp_path / 'moved' / where}"
  arguments = ["evaluate", "--workdir", tmp_path / "run", "--json", root]
  code, out, _ = call_main(command.main, *arguments)
  assert code == 0
  assert json.loads(out)["val/count"] == 6
  change(tmp_path / "moved")
  code, _, err = train(folder="moved", num_steps=8)
  assert code == 2
  assert "class 'red' had 12 records and has" in err
