"""Repositories of the Hugging Face hub, as timm and transformers lay them."""

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


def test_a_repository_is_loaded(monkeypatch, tmp_path):
  case = cases.CASES["cifar_resnet20"]
  state_dict = cases.filled(cases.our_shapes(case))
  names = [f"class {n}" for n in range(10)]
  hub_cache.write_repository(
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
  # A new head is for other classes.
  other = load_pretrained(
    "hf-hub:owner/net", num_classes=3, **dict(case.fields)
  )
  assert other.class_names == ()
