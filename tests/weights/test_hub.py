"""Repositories of the Hugging Face hub, as timm and transformers lay them."""

import json

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.weights import hub, load_pretrained
from flax_resnet.weights.preprocessing import Preprocessing
from tests.weights import cases, hub_cache

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TENSORS = {"x": np.zeros(2)}


@pytest.mark.parametrize(
  ("interpolation", "used"), [("bicubic", "bicubic"), ("random", "bilinear")]
)
def test_what_timm_says(monkeypatch, tmp_path, interpolation, used):
  config = hub_cache.TIMM | {
    "pretrained_cfg": hub_cache.TIMM["pretrained_cfg"]
    | {"interpolation": interpolation}
  }
  folder = hub_cache.write_repository(
    monkeypatch, tmp_path, "timm/net", tensors=TENSORS, config=config
  )
  source = hub.fetch("hf-hub:timm/net")
  assert source.path == folder / "model.safetensors"
  assert source.model == "resnet18"
  assert source.class_names == ("cat", "dog")
  assert source.preprocessing == Preprocessing(224, 0.95, used, MEAN, STD)


@pytest.mark.parametrize(
  ("values", "name"),
  [
    ({}, "resnet18"),
    ({"layer_type": "bottleneck", "depths": [3, 4, 23, 3]}, "resnet101"),
    (
      {
        "layer_type": "bottleneck",
        "depths": [3, 4, 6, 3],
        "downsample_in_bottleneck": True,
      },
      "resnet50_v1",
    ),
    ({"depths": [1, 1, 1, 1]}, None),
  ],
)
def test_what_transformers_says(monkeypatch, tmp_path, values, name):
  hub_cache.write_repository(
    monkeypatch,
    tmp_path,
    "microsoft/net",
    tensors=TENSORS,
    config=hub_cache.TRANSFORMERS | values,
    preprocessor_config=hub_cache.PROCESSOR,
  )
  source = hub.fetch("hf-hub:microsoft/net")
  assert source.model == name
  assert source.class_names == ("cat", "dog")
  assert source.preprocessing == Preprocessing(224, 0.875, "bicubic", MEAN, STD)


@pytest.mark.parametrize(
  ("config", "model", "share"),
  [
    # As timm wrote it at first, and never with a preprocessor_config.json.
    (
      {"architecture": "resnet18", **hub_cache.TIMM["pretrained_cfg"]},
      "resnet18",
      0.95,
    ),
    (hub_cache.TIMM, "resnet18", 0.95),
    (hub_cache.TRANSFORMERS, "resnet18", None),
  ],
)
@pytest.mark.parametrize(
  "files",
  [
    ["model.safetensors"],
    ["model.safetensors.index.json", "a-1.safetensors", "a-2.safetensors"],
    ["pytorch_model.bin"],
    ["pytorch_model.pth"],
  ],
)
def test_offline_what_is_not_cached_was_never_there(
  monkeypatch, tmp_path, files, config, model, share
):
  folder = hub_cache.write_repository(
    monkeypatch, tmp_path, "timm/net", tensors=None, config=config
  )
  shards = {f"x{n}": name for n, name in enumerate(files[1:])}
  for file in files:
    (folder / file).write_text(json.dumps({"weight_map": shards}))
  source = hub.fetch("hf-hub:timm/net")
  assert source.path == folder / files[0]
  assert source.model == model
  assert (source.preprocessing and source.preprocessing.crop_fraction) == share


def test_offline_a_repository_may_have_no_config(monkeypatch, tmp_path):
  folder = hub_cache.write_repository(
    monkeypatch, tmp_path, "owner/net", tensors=TENSORS
  )
  # The client notes what the hub has said.
  missing = folder.parents[1] / ".no_exist" / hub_cache.COMMIT / "config.json"
  missing.parent.mkdir(parents=True)
  missing.touch()
  assert hub.fetch("hf-hub:owner/net").model is None


@pytest.mark.parametrize("key", ["timm", "transformers"])
def test_weights_are_tested_at_the_size_for_tests(monkeypatch, tmp_path, key):
  """A clone in a folder says the same as a repository."""
  cfg = hub_cache.TIMM["pretrained_cfg"] | {
    "test_input_size": [3, 288, 288],
    "test_crop_pct": 1.0,
  }
  documents = {"config": hub_cache.TIMM | {"pretrained_cfg": cfg}}
  if key == "transformers":
    processor = hub_cache.PROCESSOR | {"size": 288, "crop_pct": 1.0}
    documents = {
      "config": hub_cache.TRANSFORMERS,
      "preprocessor_config": processor,
    }
  folder = hub_cache.write_repository(
    monkeypatch, tmp_path, "timm/net", tensors=TENSORS, **documents
  )
  expected = Preprocessing(288, 1.0, "bicubic", MEAN, STD)
  assert hub.fetch("hf-hub:timm/net").preprocessing == expected
  assert hub.is_clone(folder)
  assert hub.read_clone(folder) == hub.fetch("hf-hub:timm/net")


@pytest.mark.parametrize("key", ["id2label", "label_names"])
@pytest.mark.parametrize(
  ("by_label", "names"),
  [
    ({"1": "cat", "0": "dog"}, ("dog", "cat")),
    ({"10": "x", "9": "y"} | {str(n): "z" for n in range(9)}, None),
    # Between others, and before the first.
    (
      {"1": "cat", "2": "dog", "5": "owl"},
      ("0", "cat", "dog", "3", "4", "owl"),
    ),
  ],
)
def test_keys_of_names_are_labels(monkeypatch, tmp_path, by_label, names, key):
  hub_cache.write_repository(
    monkeypatch,
    tmp_path,
    "a/b",
    tensors=TENSORS,
    config=hub_cache.TRANSFORMERS | {key: by_label},
  )
  expected = names or (*["z"] * 9, "y", "x")
  assert hub.fetch("hf-hub:a/b").class_names == expected


def test_a_repository_is_loaded(monkeypatch, tmp_path, capsys):
  case = cases.CASES["cifar_resnet20"]
  state_dict = cases.filled(cases.our_shapes(case))
  names = [f"class {n}" for n in range(10)]
  folder = hub_cache.write_repository(
    monkeypatch,
    tmp_path,
    "owner/net",
    tensors=state_dict,
    config=hub_cache.TIMM | {"architecture": case.model, "label_names": names},
  )
  loaded = load_pretrained("hf-hub:owner/net", **dict(case.fields))
  back = fr.to_torch(loaded.variables, loaded.model, case.names)
  jax.tree.map(np.testing.assert_array_equal, back, state_dict)
  assert loaded.preprocessing.crop_fraction == 0.95
  assert loaded.class_names == tuple(names)
  # More names than classes: from 1 to 10.
  (folder / "config.json").write_text(
    json.dumps(
      hub_cache.TRANSFORMERS
      | {"id2label": {n: str(n) for n in range(1, 11)}, "model_type": "other"}
    )
  )
  capsys.readouterr()
  loaded = load_pretrained("hf-hub:owner/net", case.model, **dict(case.fields))
  assert loaded.class_names == ()
  assert "names 11 classes and has 10" in capsys.readouterr().err
  # A new head is for other classes.
  other = load_pretrained(
    "hf-hub:owner/net", case.model, num_classes=3, **dict(case.fields)
  )
  assert other.class_names == ()
