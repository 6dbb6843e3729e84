"""Published tags: from a hub on 127.0.0.1, from its cache, and offline."""

import json
import os
import socket
import subprocess
import sys

from huggingface_hub import constants
import jax
import numpy as np
import pytest
from safetensors.numpy import save

import flax_resnet as fr
from flax_resnet.weights import files, load_pretrained, WeightsError
from tests.recipes import ROOT
from tests.weights import cases, hub_cache, hub_server

FIELDS = {"stage_sizes": (1, 1, 1, 1), "stage_features": (4, 4, 4, 4)}
CONFIG = hub_cache.TIMM | {
  # Thin, so that it is quick.
  "flax_resnet": {"fields": FIELDS},
  "label_names": [f"class {n}" for n in range(1000)],
  "pretrained_cfg": hub_cache.TIMM["pretrained_cfg"]
  | {"test_input_size": [3, 40, 40], "test_crop_pct": 1.0},
}


@pytest.fixture(scope="module")
def state_dict():
  case = cases.Case("resnet18", (), fields=tuple(FIELDS.items()))
  shapes = cases.our_shapes(case)
  wide = {
    name: (1000, *shape[1:]) if name.startswith("fc.") else shape
    for name, shape in shapes.items()
  }
  return cases.filled(wide)


@pytest.fixture
def served(state_dict):
  contents = {
    "timm/resnet18.a1_in1k/config.json": json.dumps(CONFIG).encode(),
    "timm/resnet18.a1_in1k/model.safetensors": save(state_dict),
  }
  with hub_server.serve(contents) as (url, asked):
    yield url, asked


def test_a_tag_is_loaded_from_the_hub_and_then_without_it(
  served, state_dict, tmp_path, monkeypatch, capsys
):
  """By the command, with HF_ENDPOINT; offline from its cache."""
  url, asked = served
  out, cache = tmp_path / "out.safetensors", tmp_path / "cache"
  environment = os.environ | {
    "HF_ENDPOINT": url,
    "HF_HUB_CACHE": str(cache),
    "HF_HUB_OFFLINE": "0",
  }
  done = subprocess.run(
    [sys.executable, "-m", "flax_resnet", "convert", "resnet18", str(out)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (
    0,
    "resnet18: the default weights, resnet18.a1_in1k\n",
  )
  assert {path for path in asked if "resolve" in path} == {
    f"/timm/resnet18.a1_in1k/resolve/main/{file}"
    for file in ("config.json", "model.safetensors")
  }
  jax.tree.map(np.testing.assert_array_equal, files.read(out), state_dict)

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  seen = len(asked)
  loaded = load_pretrained("resnet18.a1_in1k")
  assert loaded.preprocessing.image_size == 40
  assert loaded.class_names[7] == "class 7"
  back = fr.to_torch(loaded.variables, loaded.model)
  jax.tree.map(np.testing.assert_array_equal, back, state_dict)
  assert len(asked) == seen
  assert capsys.readouterr().err == ""


def test_a_hub_that_does_not_answer_is_asked_once(
  state_dict, tmp_path, monkeypatch
):
  """Its client would try for 40 seconds, before it looks into its cache."""
  asked = []
  hub_cache.write_repository(
    *(monkeypatch, tmp_path, "timm/resnet18.a1_in1k"),
    tensors=state_dict,
    config=CONFIG,
  )
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  for name in ("http_proxy", "https_proxy", "all_proxy"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)

  def refused(address, **_):
    asked.append(address)
    raise OSError("no route")

  monkeypatch.setattr(socket, "create_connection", refused)
  loaded = load_pretrained("resnet18.a1_in1k")
  assert loaded.class_names[7] == "class 7"
  with pytest.raises(WeightsError, match="the hub cannot be reached"):
    load_pretrained("resnet34.a1_in1k")
  assert len(asked) == 2


def test_what_is_there_wins_over_a_name(state_dict, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = fr.create_model("resnet18", num_classes=1000, **FIELDS)
  variables = fr.from_torch(state_dict, model)
  files.write_checkpoint("resnet18.a1_in1k", variables)
  found, _ = fr.from_pretrained("resnet18.a1_in1k", "resnet18", **FIELDS)
  assert found == model


def test_files_of_networks_with_the_same_tensors_are_told_apart(
  state_dict, tmp_path, monkeypatch
):
  """By the architecture that their config names."""
  for architecture in ("resnet18", "resnetaa50", "cifar_resnet18"):
    hub_cache.write_repository(
      monkeypatch,
      tmp_path / architecture,
      "a/b",
      tensors=state_dict,
      config=CONFIG | {"architecture": architecture, "flax_resnet": {}},
    )
    if architecture == "resnet18":
      fr.from_pretrained("hf-hub:a/b", "resnet18", **FIELDS)
      fr.from_pretrained("hf-hub:a/b", "resnet18.a1_in1k", **FIELDS)
    else:
      with pytest.raises(WeightsError, match=f"weights of {architecture}, and"):
        fr.from_pretrained("hf-hub:a/b", "resnet18", **FIELDS)


def test_channels_are_adapted_as_timm_does(state_dict, tmp_path, capsys):
  model = fr.create_model("resnet18", **FIELDS)
  out = tmp_path / "OUT"
  fr.save_pretrained(out, model, fr.from_torch(state_dict, model))
  capsys.readouterr()
  kernel = state_dict["conv1.weight"]
  expected = {
    1: kernel.sum(1, keepdims=True),
    2: kernel[:, [0, 1]] * 1.5,
    3: kernel,
    5: kernel[:, [0, 1, 2, 0, 1]] * 0.6,
  }
  for channels, wanted in expected.items():
    loaded = load_pretrained(out, in_channels=channels)
    found = fr.to_torch(loaded.variables, loaded.model)["conv1.weight"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(loaded.preprocessing.mean) == channels == loaded.channels
    said = capsys.readouterr().err
    assert said.count("\n") == (channels != 3)
    assert f"take 3 channels and the model {channels}" in said or channels == 3
