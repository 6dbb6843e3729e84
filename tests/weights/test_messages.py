"""The messages about weights that cannot be read, or do not fit."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import flax_resnet as fr
from flax_resnet.weights import files, hub, load_pretrained, WeightsError
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from tests.weights import hub_cache
from tests.weights.conftest import CASE

MODEL = CASE.network()
RUN = {
  "model": {"name": "cifar_resnet8", "num_classes": 10},
  "data": {"image_size": 8},
  "augment": {"mean": [0.5], "std": [0.5]},
}


def written(path, content):
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  return path


def changed(tensors, name, number):
  """Returns tensors with another number in the last place of one."""
  array = tensors[name].copy()
  array.flat[-1] = number
  return tensors | {name: array}


def checkpoint(path, tensors):
  files.write_checkpoint(path, fr.from_torch(tensors, MODEL))
  return path


def sharded(path, weight_map, shards):
  """Returns an index of shards, with those that there are."""
  for shard, names in shards.items():
    save_file({name: np.zeros(2) for name in names}, path / shard)
  content = json.dumps({"weight_map": weight_map}).encode()
  return written(path / "model.safetensors.index.json", content)


def workdir(path, config):
  written(path / "run" / "config.json", json.dumps(config).encode())
  return path / "run"


def about(path, config):
  """Returns a folder that says of which run it is a checkpoint."""
  values = {"config": config, "class_names": ["a", "b"]}
  content = json.dumps(values).encode()
  (path / "1").mkdir()
  return written(path / "1" / "about" / "metadata", content).parents[1]


# A function of a folder and of the tensors of a network; and its message.
CASES = {
  "no file": (
    lambda path, _: files.read(path / "x.pth"),
    "there is no weight file {path}/x.pth",
  ),
  "another ending": (
    lambda path, _: files.read(written(path / "x.h5", b"x")),
    "weight file {path}/x.h5 has an unknown ending: use .safetensors or .pth, "
    ".pt, .th, .bin",
  ),
  "a cut file": (
    lambda path, tensors: files.read(
      written(path / "x.safetensors", save(tensors)[:-100])
    ),
    "weight file {path}/x.safetensors is not a whole .safetensors file: ",
  ),
  "a folder": (
    lambda path, _: files.read(path),
    "folder {path} is not a Flax checkpoint: ",
  ),
  "another network": (
    lambda path, tensors: fr.from_pretrained(
      checkpoint(path / "flax", tensors), "cifar_resnet8"
    ),
    "the weights, read with the names of this package, are not those of the "
    "model: unexpected: batch_stats/stage2_block2/bn1/mean, ",
  ),
  "tensors that do not fit": (
    lambda _, tensors: fr.from_torch(
      {k: v for k, v in tensors.items() if k != "layer1.0.bn2.running_var"}
      | {"layer9.0.weight": np.zeros(1), "linear.weight": np.zeros((7, 64))},
      MODEL,
    ),
    "the weights, read with the names of the CIFAR nets of akamaster, are not "
    "those of the model: missing: layer1.0.bn2.running_var; unexpected: "
    "layer9.0.weight; different: linear.weight [7, 64] instead of [10, 64]",
  ),
  "a variance that is negative": (
    lambda _, tensors: fr.from_torch(
      changed(tensors, "layer1.0.bn1.running_var", -1e-3), MODEL
    ),
    "the weights hold numbers that are not finite, or negative variances, in "
    "layer1.0.bn1.running_var: the run that wrote them has failed, or the file "
    "is damaged",
  ),
  "a variance that is infinite": (
    lambda _, tensors: fr.from_torch(
      changed(tensors, "layer1.0.bn1.running_var", np.inf), MODEL
    ),
    "negative variances, in layer1.0.bn1.running_var: ",
  ),
  "a mean that is not a number": (
    lambda _, tensors: fr.from_torch(
      changed(tensors, "bn1.running_mean", np.nan), MODEL
    ),
    "negative variances, in bn1.running_mean: ",
  ),
  "kernels that are not finite": (
    lambda path, tensors: (
      save_file(
        changed(
          changed(tensors, "linear.weight", -np.inf), "conv1.weight", np.nan
        ),
        path / "x.safetensors",
      ),
      load_pretrained(path / "x.safetensors", CASE.model, **dict(CASE.fields)),
    ),
    "negative variances, in linear.weight, conv1.weight: ",
  ),
  "a tensor of another rank": (
    lambda _, tensors: fr.from_torch(
      tensors | {"conv1.weight": np.zeros(3)}, MODEL
    ),
    "different: conv1.weight [3] instead of [16, 3, 3, 3]",
  ),
  "a head that is none": (
    lambda path, tensors: (
      save_file(
        tensors | {"linear.weight": np.zeros(())}, path / "x.safetensors"
      ),
      load_pretrained(path / "x.safetensors", CASE.model, **dict(CASE.fields)),
    ),
    "different: linear.weight [] instead of [10, 64]",
  ),
  "no model": (
    lambda path, tensors: fr.from_pretrained(
      checkpoint(path / "flax", tensors)
    ),
    '{path}/flax does not say of which network: give model="…"',
  ),
  "a run without a checkpoint": (
    lambda path, _: load_pretrained(workdir(path, RUN)),
    "workdir {path}/run has no checkpoint yet",
  ),
  "a config of no run": (
    lambda path, _: load_pretrained(about(path, RUN | {"model": {"name": 7}})),
    "{path}/1/about is not that of a run: ",
  ),
  "a run of no network": (
    lambda path, _: load_pretrained(
      about(path, RUN | {"model": {"name": "cifar_resnet8", "shortcut": "x"}})
    ),
    "{path}/1/about is not that of a run: ",
  ),
  "no tag of this name": (
    lambda *_: fr.from_pretrained("resnet50.a1_in1"),
    "unknown tag 'resnet50.a1_in1': did you mean 'resnet50.a1_in1k'?",
  ),
  "no network of this name": (
    lambda *_: fr.from_pretrained("resnet5.a1_in1k"),
    "there is no file or folder resnet5.a1_in1k, and no model 'resnet5': did "
    "you mean 'resnet50'?",
  ),
  "a network without published weights": (
    lambda *_: fr.from_pretrained("cifar_resnet1202"),
    "cifar_resnet1202 has no published weights: give a weight file",
  ),
  "no channels": (
    lambda path, tensors: (
      save_file(tensors, path / "x.safetensors"),
      load_pretrained(
        path / "x.safetensors", CASE.model, in_channels=0, **dict(CASE.fields)
      ),
    ),
    "in_channels is 0: use 1 or more",
  ),
  "a clone with a whole file and shards": (
    lambda path, tensors: (
      save_file(tensors, path / "model.safetensors"),
      written(path / "model.safetensors.index.json", b"{}"),
      load_pretrained(path, CASE.model),
    ),
    "{path} has model.safetensors and model.safetensors.index.json, of which "
    "one is older: give one of the two files",
  ),
  "an index that is cut": (
    lambda path, _: files.read(
      written(path / "model.safetensors.index.json", b'{"weight_map": {"x')
    ),
    "{path}/model.safetensors.index.json is not JSON: ",
  ),
  "an index of nothing": (
    lambda path, _: files.read(
      written(path / "model.safetensors.index.json", b'{"weight_map": 3}')
    ),
    "{path}/model.safetensors.index.json is no index of shards: it has no "
    "weight_map of the tensors and their .safetensors files",
  ),
  "an index that leads elsewhere": (
    lambda path, _: files.read(
      written(
        path / "model.safetensors.index.json",
        b'{"weight_map": {"x": "../x.safetensors"}}',
      )
    ),
    "is no index of shards: ",
  ),
  "a shard that is not there": (
    lambda path, _: files.read(sharded(path, {"x": "1.safetensors"}, {})),
    "{path}/model.safetensors.index.json lists 1.safetensors, which is not "
    "beside it",
  ),
  "a clone without a shard": (
    lambda path, _: fr.from_pretrained(
      sharded(path, {"x": "1.safetensors"}, {}).parent, CASE.model
    ),
    "lists 1.safetensors, which is not beside it",
  ),
  "shards of another index": (
    lambda path, _: files.read(
      sharded(
        path,
        {"x": "1.safetensors", "y": "1.safetensors"},
        {"1.safetensors": ["x", "z"]},
      )
    ),
    "{path}/model.safetensors.index.json does not list what its shards hold: "
    "missing: y; unexpected: z",
  ),
  "a name of no repository": (
    lambda *_: hub.fetch("hf-hub:../../etc/passwd"),
    "'hf-hub:../../etc/passwd' cannot be read: use hf-hub:owner/repository, "
    "with @revision if so wanted",
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights(case, state_dict, tmp_path):
  call, expected = CASES[case]
  with pytest.raises(WeightsError) as caught:
    call(tmp_path, state_dict)
  assert expected.format(path=tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("documents", "expected"),
  [
    ({}, "hf-hub:a/b is not in the local cache, and the hub cannot be reached"),
    (
      {"config": {"pretrained_cfg": {"input_size": []}}},
      "hf-hub:a/b has a config that cannot be: ValueError('not enough values",
    ),
    (
      {
        "config": hub_cache.TIMM
        | {"pretrained_cfg": hub_cache.TIMM["pretrained_cfg"] | {"crop_pct": 7}}
      },
      "hf-hub:a/b has a config that cannot be: ValueError('crop_fraction is 7: "
      "use 0.001 to 1')",
    ),
    (
      {"config": hub_cache.TRANSFORMERS | {"id2label": {"-1": "cat"}}},
      "cannot be: ValueError('classes -1 to -1 have names')",
    ),
    (
      {
        "config": hub_cache.TIMM
        | {
          "pretrained_cfg": hub_cache.TIMM["pretrained_cfg"]
          | {"crop_mode": "squash"}
        }
      },
      "ValueError(\"crop_mode is 'squash': only center",
    ),
    ({"config": []}, "config.json of hf-hub:a/b is not JSON (something else"),
  ],
)
def test_repositories(documents, expected, monkeypatch, tmp_path):
  hub_cache.write_repository(
    monkeypatch, tmp_path, "a/b", tensors={"x": np.zeros(2)}, **documents
  )
  with pytest.raises(WeightsError) as caught:
    hub.fetch("hf-hub:a/b")
  assert expected in str(caught.value)


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ({"image_size": 0}, "image_size is 0: use 1 to 9,459"),
    ({"image_size": "8"}, "image_size is '8': use int, 1 to 9,459"),
    ({"image_size": (8, 9, 3)}, "image_size is (8, 9, 3): use 1 to 9,459 or ("),
    ({"image_size": (8, 0)}, "image_size is (8, 0): use int, 1 to 9,459 or ("),
    ({"interpolation": "cubic"}, "interpolation is 'cubic': use one of"),
    ({"std": (1.0, 0.0, 1.0)}, "std is (1.0, 0.0, 1.0): use a tuple of float,"),
    ({"mean": (0.5,)}, "give one of each a channel"),
  ],
)
def test_preprocessing(values, expected):
  with pytest.raises(ValueError) as caught:
    Preprocessing(**vars(IMAGENET) | values)
  assert expected in str(caught.value)


def test_files_of_pytorch_without_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = written(tmp_path / "x.pth", b"x")
  for call in (files.read, lambda p: files.write(p, {"x": np.zeros(3)})):
    with pytest.raises(WeightsError) as caught:
      call(path)
    assert str(caught.value) == (
      ".pth files are PyTorch's: install torch to read or write "
      f"{path}, or use a .safetensors file"
    )
  assert path.read_bytes() == b"x"


@pytest.mark.deep
@pytest.mark.parametrize(
  ("values", "expected"),
  [
    (b"", "is not a PyTorch file of tensors alone: "),
    (lambda torch: [torch.zeros(3)], "holds no state_dict of tensors"),
    (lambda torch: {"x": 3}, "holds no state_dict of tensors"),
  ],
)
def test_files_of_pytorch(values, expected, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "x.pth"
  if callable(values):
    torch.save(values(torch), path)
  else:
    path.write_bytes(values)
  with pytest.raises(WeightsError) as caught:
    files.read(path)
  assert f"weight file {path} {expected}" in str(caught.value)
