"""The weights that come with the package."""

import json
import os
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

import flax_resnet as fr
from flax_resnet import __main__
from flax_resnet.models import tags
from flax_resnet.weights import load_pretrained, WeightsError
from tests.recipes import ROOT

PACKAGED = [tag for tag in tags.published().values() if tag.folder]
NAMES = [tag.name for tag in PACKAGED]


@pytest.mark.parametrize("tag", PACKAGED, ids=NAMES)
def test_they_are_small_and_have_a_card(tag):
  """In float32, at most 1.2 MB; the card says what made them."""
  assert (tag.folder / "model.safetensors").stat().st_size <= 1.2e6
  card = (tag.folder / "README.md").read_text()
  assert f"top-1 {tag.top1:.2f}%" in card
  assert '"seed": ' in card
  assert re.search(r"commit [0-9a-f]{7,}", card)
  assert not re.search(r"/(root|home|work|tmp)/", card)


@pytest.mark.parametrize("tag", PACKAGED, ids=NAMES)
def test_they_are_a_network_offline(tag, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  loaded = load_pretrained(tag.name)
  assert loaded.model == fr.create_model(tag.name)
  assert len(loaded.class_names) == loaded.model.num_classes == tag.num_classes
  assert loaded.preprocessing
  assert loaded.preprocessing.image_size == tag.image_size
  for x in (loaded.variables["params"], loaded.variables["batch_stats"]):
    assert x


def test_a_name_alone_is_its_default_tag(capsys):
  model, _ = fr.from_pretrained("cifar_resnet8")
  assert model.stage_features == (32, 64, 128)
  assert capsys.readouterr().err == (
    "cifar_resnet8: the default weights, cifar_resnet8.digits\n"
  )


def test_a_tag_that_is_not_there_names_the_nearest():
  with pytest.raises(WeightsError, match="did you mean 'cifar_resnet8.digits'"):
    fr.from_pretrained("cifar_resnet8.digit")


def test_evaluate_gives_the_accuracy_of_the_card(call_main, data_dir):
  code, out, _ = call_main(
    __main__.main,
    *("evaluate", "--weights", "cifar_resnet8.digits", "--json"),
    *("--config", ROOT / "configs" / "digits.py"),
    f"--config.data.data_dir={data_dir}",
  )
  assert code == 0
  result = json.loads(out)
  card = (tags.find("cifar_resnet8").folder / "README.md").read_text()
  assert f"top-1 {result['val/top1']:.2%} of {result['val/count']} im" in card


def test_predict_takes_a_tag_without_a_model(tmp_path):
  """In a process that never asks the hub, on a digit as a file."""
  pixels, labels = load_digits(return_X_y=True)
  image = (pixels[1500].reshape(8, 8) / 16 * 255).astype(np.uint8)
  Image.fromarray(image).save(tmp_path / "digit.png")
  run = subprocess.run(
    [
      *(sys.executable, "-m", "flax_resnet", "predict", "digit.png"),
      *("--weights", "cifar_resnet8.digits", "--json"),
    ],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    check=True,
  )
  best = json.loads(run.stdout)["classes"][0]
  assert best["class"] == str(labels[1500])
  assert best["probability"] > 0.5
