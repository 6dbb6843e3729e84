"""train.py on a folder of photographs, whole and broken ones."""

import json
import pathlib
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from flax_resnet import __main__ as command
from flax_resnet import storage
from flax_resnet.weights import files
from tests import recipes, runs
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
  newest = files.find_checkpoint(tmp_path / "run")
  assert files.read_about(newest)[1] == ("red", "시안")


def test_gray_images_from_training_to_prediction(
  train, call_main, tmp_path, folder
):
  """Of color files and of gray ones, by Pillow's "L"."""
  gray = {
    "data.channels": 1,
    "augment.mean": "(0.5,)",
    "augment.std": "(0.25,)",
  }
  code, out, err = train(**gray)
  assert (code, err) == (0, "")
  assert "images 16x16x1" in out
  code, _, err = train(**{**gray, "data.channels": 3})
  assert code == 2
  assert "mean has 1 numbers and the images 3 channels" in err
  run, picture = tmp_path / "run", folder / "red" / "00.jpg"
  code, out, _ = call_main(command.main, "evaluate", "--workdir", run)
  assert (code, "on 5 images" in out) == (0, True)
  gray_file = tmp_path / "gray.png"
  with Image.open(picture) as image:
    image.convert("L").save(gray_file)
  arguments = ("predict", "--workdir", run, picture, gray_file, "--json")
  code, out, _ = call_main(command.main, *arguments)
  assert code == 0
  of_color, of_gray = (json.loads(line)["classes"] for line in out.splitlines())
  assert of_color == of_gray
  code, out, _ = call_main(
    command.main, "export", "--workdir", run, tmp_path / "OUT", "--pixels"
  )
  assert (code, "[b, 16, 16, 1]" in out) == (0, True)


def changes_of(folder):
  """Yields what is said once the photographs of a folder have changed."""
  new = shutil.copy(folder / "red" / "00.jpg", folder / "red" / "new.jpg")
  yield "records and has"
  pathlib.Path(new).unlink()
  (folder / "red" / "05.jpg").rename(folder / "red" / "a.jpg")
  yield "other records, or in another order"
  (folder / "red" / "a.jpg").rename(folder / "red" / "05.jpg")
  (folder / "red").rename(folder / "rose")
  yield "train: class 'red' is gone, train: class 'rose' is new, eval: class"


def test_a_run_goes_on_with_the_data_it_began_with(train, folder, tmp_path):
  """In another place as well; with others if that is allowed."""
  assert train()[0] == 0
  before = runs.files_of(tmp_path / "run")
  for change in changes_of(folder):
    code, _, err = train(num_steps=8)
    assert code == 2
    assert "the data are not those that the run began with" in err
    assert change in err
    assert runs.files_of(tmp_path / "run") == before
  code, out, _ = train(num_steps=8, **{"data.allow_changed": True})
  assert code == 0
  assert "warning: the data are not those that the run began with" in out
  moved = folder.rename(tmp_path / "moved")
  code, out, _ = train(num_steps=9, **{"data.root": moved, "log_every": 1})
  assert code == 0
  assert "continues with log_every (there 2, now 1), data.root (there" in out
  assert "warning" not in out


def test_the_number_of_classes_is_that_of_the_data(
  train, folder, call_main, tmp_path
):
  """If it is not given; a network of the run needs no split but one."""
  for classes in (None, 2):
    code, out, _ = train(**{"model.num_classes": classes})
    assert code == 0
    assert ", 2 classes, images" in out
  config = storage.read_config(tmp_path / "run")
  assert config["model"]["num_classes"] == 2
  code, _, err = train(**{"model.num_classes": 3})
  assert code == 2
  assert "has 2 classes and the model 3" in err
  only = tmp_path / "only"
  shutil.copytree(folder, only / "val")
  overrides = [f"--config.data.root={only}", "--config.data.eval_split=val"]
  arguments = ["evaluate", "--workdir", tmp_path / "run", "--json", *overrides]
  code, out, _ = call_main(command.main, *arguments)
  assert code == 0
  assert json.loads(out)["val/count"] == 24
  for path in only.rglob("*.jpg"):  # A mean over nothing would be no number.
    path.write_bytes(path.read_bytes()[:-40])
  with pytest.warns(UserWarning, match="skipped"):
    code, out, err = call_main(
      command.main, *arguments, "--config.data.on_error=skip"
    )
  assert (code, out) == (2, "")
  assert "no image of eval_split can be read" in err


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
