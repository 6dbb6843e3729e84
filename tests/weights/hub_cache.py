"""Repositories in a cache of huggingface_hub, without the network."""

from collections.abc import Mapping
import json
import pathlib

from huggingface_hub import constants
import numpy as np
import pytest
from safetensors.numpy import save_file

COMMIT = "0123456789" * 4
TIMM = {
  "architecture": "resnet18",
  "label_names": ["cat", "dog"],
  "pretrained_cfg": {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
  },
}
TRANSFORMERS = {
  "model_type": "resnet",
  "layer_type": "basic",
  "depths": [2, 2, 2, 2],
  "id2label": {"0": "cat", "1": "dog"},
}
PROCESSOR = {
  "crop_pct": 0.875,
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
  "resample": 3,
  "size": {"shortest_edge": 224},
}


def write_repository(
  monkeypatch: pytest.MonkeyPatch,
  cache: pathlib.Path,
  repository: str,
  *,
  tensors: Mapping[str, np.ndarray] | None,
  **documents: object,
) -> pathlib.Path:
  """Writes a repository into a cache that is then the only one.

  Args:
    monkeypatch: ends it.
    cache: folder of the cache.
    repository: name of the repository.
    tensors: contents of its model.safetensors; None for no such file.
    **documents: contents of its JSON files, by name without the ending.

  Returns:
    The folder of its files.
  """
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  folder = cache / f"models--{repository.replace('/', '--')}"
  snapshot = folder / "snapshots" / COMMIT
  snapshot.mkdir(parents=True)
  (folder / "refs").mkdir()
  (folder / "refs" / "main").write_text(COMMIT)
  if tensors is not None:
    save_file(dict(tensors), snapshot / "model.safetensors")
  for name, values in documents.items():
    (snapshot / f"{name}.json").write_text(json.dumps(values))
  return snapshot
