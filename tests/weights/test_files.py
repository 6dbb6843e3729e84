import json
import pathlib
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flax_resnet as fr
from flax_resnet.weights import files
from flax_resnet.weights import hub
from flax_resnet.weights import load_pretrained
from flax_resnet.weights import WeightsError
from flax_resnet.weights.preprocessing import Preprocessing
from tests.drawing import normal
from tests.weights import cases

CASE = cases.CASES["cifar_resnet20"]
FIELDS = dict(CASE.fields)


@pytest.fixture(scope="module")
def state_dict():
  return cases.filled(cases.our_shapes(CASE))


@pytest.fixture
def safetensors(state_dict, tmp_path):
  path = tmp_path / "weights.safetensors"
  save_file(state_dict, path)
  return path


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_safetensors_pytorch_and_checkpoints_hold_the_same(
  state_dict, safetensors, tmp_path
):
  model, variables = fr.from_pretrained(safetensors, "cifar_resnet20", **FIELDS)
  assert model.num_classes == 10
  assert_same(variables, fr.from_torch(state_dict, model))
  files.write_checkpoint(tmp_path / "flax", variables)
  _, again = fr.from_pretrained(tmp_path / "flax", "cifar_resnet20", **FIELDS)
  assert_same(variables, again)
  files.write(
    tmp_path / "back.safetensors", fr.to_torch(variables, model, "cifar")
  )
  for key, value in load_file(tmp_path / "back.safetensors").items():
    np.testing.assert_array_equal(value, state_dict[key])


def test_pth_files(state_dict, tmp_path):
  torch = pytest.importorskip("torch")
  tensors = {k: torch.from_numpy(v) for k, v in state_dict.items()}
  torch.save({"state_dict": tensors, "best": 0.9}, tmp_path / "weights.th")
  model, variables = fr.from_pretrained(
    tmp_path / "weights.th", "cifar_resnet20", **FIELDS
  )
  assert_same(variables, fr.from_torch(state_dict, model))
  files.write(tmp_path / "back.pth", fr.to_torch(variables, model, "cifar"))
  back = torch.load(tmp_path / "back.pth", weights_only=True)
  assert back.keys() == tensors.keys()
  assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_pth_without_torch_says_what_to_install(tmp_path, monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "weights.pth").write_bytes(b"x")
  with pytest.raises(WeightsError, match="install torch to read or write"):
    files.read(tmp_path / "weights.pth")


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_no_pickle_is_ever_executed(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"conv1.weight": Evil(tmp_path / "owned")}, tmp_path / "a.pth")
  (tmp_path / "b.bin").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
  for name in ("a.pth", "b.bin"):
    with pytest.raises(
      WeightsError, match=r"alone: (it names \S+, w|Unsupported o)"
    ):
      files.read(tmp_path / name)
  assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("cut.safetensors", None, "is not a whole .safetensors file"),
    ("foreign.safetensors", b"GIF89a" * 50, "is not a whole .safetensors file"),
    ("empty.safetensors", b"", "is not a whole .safetensors file"),
    ("weights.h5", b"x", "unknown ending: use .safetensors or .pth"),
  ],
)
def test_files_that_are_none(safetensors, tmp_path, name, content, message):
  path = tmp_path / name
  if content is None:
    content = safetensors.read_bytes()[:-100]
  path.write_bytes(content)
  with pytest.raises(WeightsError, match=message) as caught:
    files.read(path)
  assert "\n" not in str(caught.value)
  with pytest.raises(WeightsError, match="there is no weight file"):
    files.read(tmp_path / "absent.safetensors")


def test_a_cut_pth_is_told(state_dict, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "weights.pth"
  torch.save({k: torch.from_numpy(v) for k, v in state_dict.items()}, path)
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(WeightsError, match="PyTorch file of tensors alone"):
    files.read(path)


def test_a_folder_that_is_no_checkpoint(tmp_path):
  with pytest.raises(WeightsError, match="is not a Flax checkpoint"):
    files.read_checkpoint(tmp_path)


def test_a_checkpoint_of_another_model(safetensors, tmp_path):
  _, variables = fr.from_pretrained(safetensors, "cifar_resnet20", **FIELDS)
  files.write_checkpoint(tmp_path / "flax", variables)
  with pytest.raises(WeightsError, match=r"not of this model: .*missing"):
    fr.from_pretrained(tmp_path / "flax", "cifar_resnet32")


@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_another_number_of_classes_is_said(kind, safetensors, tmp_path, capsys):
  weights = safetensors
  if kind == "checkpoint":
    weights = tmp_path / "flax"
    _, whole = fr.from_pretrained(safetensors, "cifar_resnet20", **FIELDS)
    files.write_checkpoint(weights, whole)
  model, variables = fr.from_pretrained(
    weights, "cifar_resnet20", num_classes=3, **FIELDS
  )
  assert model.num_classes == 3
  assert variables["params"]["head"]["kernel"].shape == (64, 3)
  said = capsys.readouterr().out
  assert said == (
    "the weights have 10 classes and the model 3: its head is initialised "
    "anew\n"
  )


@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_no_classes_are_embeddings(kind, safetensors, tmp_path, capsys):
  model, whole = fr.from_pretrained(safetensors, "cifar_resnet20", **FIELDS)
  weights = safetensors
  if kind == "checkpoint":
    weights = tmp_path / "flax"
    files.write_checkpoint(weights, whole)
  trunk, variables = fr.from_pretrained(
    weights, "cifar_resnet20", num_classes=0, **FIELDS
  )
  assert "head" not in variables["params"]
  images = normal(0, (2, 9, 9, 3))
  embeddings = trunk.apply(variables, images, train=False)
  head = whole["params"]["head"]
  logits = model.apply(whole, images, train=False)
  np.testing.assert_allclose(
    embeddings @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-4
  )
  assert capsys.readouterr().out == ""


def test_a_file_does_not_say_its_model(safetensors):
  with pytest.raises(WeightsError, match='give model="'):
    fr.from_pretrained(safetensors)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache of huggingface_hub, which may not be left."""
  import huggingface_hub
  from huggingface_hub import errors

  def download(repository, file, revision=None):
    folder = tmp_path / repository
    if not folder.is_dir():
      raise errors.LocalEntryNotFoundError("offline")
    if not (folder / file).is_file():
      raise errors.EntryNotFoundError(file)
    return str(folder / file)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  return tmp_path


@pytest.mark.parametrize(
  ("interpolation", "used"), [("bicubic", "bicubic"), ("random", "bilinear")]
)
def test_timm_s_repositories(interpolation, used, cache):
  """As hf-hub:timm/resnet50.a1_in1k is laid out."""
  case = cases.CASES["resnet18"]
  folder = cache / "timm" / "resnet18.a1_in1k"
  folder.mkdir(parents=True)
  save_file(cases.filled(cases.our_shapes(case)), folder / "model.safetensors")
  config = {
    "architecture": "resnet18",
    "num_classes": 10,
    "pretrained_cfg": {
      "input_size": [3, 224, 224],
      "interpolation": interpolation,
      "crop_pct": 0.95,
      "mean": [0.485, 0.456, 0.406],
      "std": [0.229, 0.224, 0.225],
    },
  }
  (folder / "config.json").write_text(json.dumps(config))
  loaded = load_pretrained("hf-hub:timm/resnet18.a1_in1k", **dict(case.fields))
  assert loaded.model.num_classes == 10
  assert loaded.preprocessing == hub.Preprocessing(
    224, 0.95, used, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  )


def test_transformers_repositories(cache):
  """As hf-hub:microsoft/resnet-50 is laid out."""
  case = cases.CASES["transformers"]
  folder = cache / "microsoft" / "resnet-50"
  folder.mkdir(parents=True)
  save_file(cases.filled(cases.our_shapes(case)), folder / "model.safetensors")
  config = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "layer_type": "bottleneck",
    "depths": [3, 4, 6, 3],
    "id2label": {str(n): f"class {n}" for n in range(10)},
  }
  (folder / "config.json").write_text(json.dumps(config))
  processor = {
    "crop_pct": 0.875,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
  }
  (folder / "preprocessor_config.json").write_text(json.dumps(processor))
  loaded = load_pretrained("hf-hub:microsoft/resnet-50", **dict(case.fields))
  assert loaded.preprocessing.interpolation == "bicubic"
  assert loaded.preprocessing.crop_fraction == 0.875
  assert loaded.class_names[:2] == ("class 0", "class 1")


def test_a_repository_that_cannot_be_reached(cache):
  with pytest.raises(WeightsError, match="not in the local cache"):
    load_pretrained("hf-hub:timm/absent")


def test_a_name_that_cannot_be_one():
  with pytest.raises(WeightsError, match="cannot be read") as caught:
    load_pretrained("hf-hub:../../etc/passwd")
  assert "\n" not in str(caught.value)


def test_a_run_expects_images_as_it_evaluates_them(config):
  found = config.to_dict()
  assert Preprocessing.of_run(found).image_size == 8
  found["data"]["eval_image_size"] = 12
  assert Preprocessing.of_run(found).image_size == 12
