"""check: what it reads, what it prints, and how it ends."""

import json

import numpy as np
import pytest

from tests.data import images
from tests.data.images import plain
from tests.recipes import ROOT


@pytest.fixture
def split_folder(tmp_path):
  """A folder a split, of a folder a class."""
  return images.write_split_folder(tmp_path)


def found_in(err):
  """Returns what the last line says to be wrong."""
  return err.removeprefix("error: check: ").split(":")[0]


def test_a_folder_without_faults(call, split_folder):
  # As `write_split_folder` has it, val repeats no image of train.
  code, out, err = call("check", split_folder)
  assert (code, err) == (0, "")
  lines = out.splitlines()
  assert "train: 30 images, 0 broken" in lines
  assert ["anemone", "10", "3"] in [line.split() for line in lines]
  assert lines[-1] == "other duplicates: 0"
  code, out, err = call("check", split_folder, "--json")
  assert (code, err) == (0, "")
  found = json.loads(out)
  assert list(found["splits"]) == ["train", "val"]
  assert not any(found["wrong"].values())
  assert call("check", split_folder / "val")[0] == 0  # An undivided one.


def test_faults_are_named_and_the_code_is_2(call, split_folder):
  train, val = (split_folder / split / "anemone" for split in ("train", "val"))
  (train / "z.png").write_bytes(b"no image")
  (train / "0.png").write_bytes(plain((1, 2, 3), "PNG"))
  (train / "1.png").write_bytes(plain((1, 2, 3), "PNG"))
  code, out, err = call("check", split_folder)
  assert (code, found_in(err)) == (2, "broken images 1")
  assert f"\nbroken: 1\n  {train}/z.png: 8 bytes that start" in out
  same = f"  train {train}/0.png (anemone) = train {train}/1.png (anemone)"
  assert f"\nother duplicates: 1\n{same}\n" in out
  (train / "z.png").unlink()
  assert call("check", split_folder)[0] == 0
  (split_folder / "train" / "wild rose" / "0.png").write_bytes(
    plain((1, 2, 3), "PNG")
  )
  code, out, err = call("check", split_folder)
  assert (code, found_in(err)) == (2, "duplicates with unequal labels 1")
  (split_folder / "train" / "wild rose" / "0.png").rename(val / "0.png")
  code, out, err = call("check", split_folder)
  assert (code, found_in(err)) == (2, "duplicates across splits 1")
  assert f"duplicates across splits: 1\n{same} = val {val}/0.png (" in out


def test_the_data_of_a_recipe(call, tmp_path, data_dir):
  recipe = ("check", "--config", ROOT / "configs/digits.py")
  code, out, err = call(*recipe, f"--config.data.data_dir={data_dir}", "--json")
  assert (code, err) == (0, "")
  found = json.loads(out)
  assert found["splits"]["train"]["formats"] == {"PNG L": 1437}
  pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
  labels = np.arange(30) % 10
  np.savez(
    tmp_path / "set.npz",
    train_images=pixels[:20],
    train_labels=labels[:20],
    test_images=pixels[19:],
    test_labels=labels[19:],
  )
  npz = ("name=npz", f"root={tmp_path}/set.npz", "in_memory=True")
  changes = [f"--config.data.{change}" for change in npz]
  code, out, err = call(*recipe, *changes)
  assert (code, found_in(err)) == (2, "duplicates across splits 1")
  assert f"train image 19 of train in {tmp_path}/set.npz (9) = test" in out


def test_the_limit_of_a_recipe_holds(call, tmp_path):
  images.write_folder(tmp_path, images.COUNTS)
  recipe = ("check", "--config", ROOT / "configs/folder.py")
  changes = [
    f"--config.data.root={tmp_path}",
    "--config.data.max_pixels=119",
  ]
  code, _, err = call(*recipe, *changes)
  assert (code, found_in(err)) == (2, "broken images 30")
  changes[-1] = "--config.data.max_pixels=120"
  assert call(*recipe, *changes)[0] == 0
