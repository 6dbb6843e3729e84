"""train.py on a folder of photographs, whole and broken ones."""

import re

import numpy as np
from PIL import Image
import pytest

from flax_resnet.weights import files
from tests import recipes
from tests.runs import rows_of
import train as script

SMALL = {
  "data.image_size": 16,
  "batch_size": 8,
  "eval_batch_size": 8,
  "num_steps": 6,
  "log_every": 2,
  "eval_every": 6,
  "checkpoint_every": 3,
  "model.name": "cifar_resnet8",
  "model.num_classes": 2,
  **recipes.ONE_BLOCK,
}


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for label, name in enumerate(("red", "시안")):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(12):
      pixels = rng.integers(0, 120, (24, 30, 3), np.uint8)
      pixels[..., [0] if label == 0 else [1, 2]] += 120
      path = tmp_path / "photos" / name / f"{i:02}.jpg"
      Image.fromarray(pixels).save(path)
  return tmp_path / "photos"


@pytest.fixture
def train(call_main, tmp_path, folder):
  def train(**changes):
    values = SMALL | {"data.root": str(folder)} | changes
    return call_main(
      script.main,
      f"--config={recipes.ROOT / 'configs' / 'folder.py'}",
      f"--workdir={tmp_path / 'run'}",
      *(f"--config.{key}={value}" for key, value in values.items()),
    )

  return train


def test_a_folder_trains(train, tmp_path):
  code, out, err = train()
  assert (code, err) == (0, "")
  assert "19 to train on and 5 to evaluate on" in out
  rows = rows_of(tmp_path / "run")
  assert rows[-1]["val/count"] == 5
  assert not any("train/skipped" in row for row in rows)
  assert files.class_names_of_run(tmp_path / "run") == ("red", "시안")


@pytest.mark.filterwarnings("ignore:skipped")
def test_broken_images_are_skipped_and_logged(train, folder, tmp_path):
  for path in (folder / "red").glob("0[0-5].jpg"):
    path.write_bytes(path.read_bytes()[:-40])
  code, out, _ = train(**{"data.on_error": "skip"})
  assert code == 0
  assert re.search(r"[1-9]\d* broken images skipped", out)
  rows = rows_of(tmp_path / "run")
  skipped = [row["train/skipped"] for row in rows if "train/loss" in row]
  assert len(skipped) == 3
  # A quarter of the images, seen two and a half times, and some read ahead.
  assert 6 <= sum(skipped) <= 24
  last = rows[-1]
  assert last["val/count"] + last["val/skipped"] == 5
