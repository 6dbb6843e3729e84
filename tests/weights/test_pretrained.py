"""A network and its weights out of a file, a checkpoint, a run or the hub."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flax_resnet as fr
from flax_resnet.training import train
from flax_resnet.weights import files, load_pretrained
from flax_resnet.weights.preprocessing import Preprocessing
from tests import recipes
from tests.drawing import normal
from tests.weights.conftest import CASE

NAME, FIELDS = CASE.model, dict(CASE.fields)


@pytest.fixture(scope="module")
def weights(state_dict, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
  save_file(state_dict, path)
  return path


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_variables_are_those_of_the_weights(weights, variables, tmp_path):
  files.write_checkpoint(tmp_path / "flax", variables)
  for path in (weights, tmp_path / "flax"):
    _, found = fr.from_pretrained(path, NAME, **FIELDS)
    assert_same(found, variables)


@pytest.mark.parametrize("classes", [7, 0])
def test_the_number_of_classes_is_that_of_the_weights(
  state_dict, tmp_path, classes
):
  head = {k: v[:7] for k, v in state_dict.items() if k.startswith("linear")}
  tensors = {k: v for k, v in state_dict.items() if k not in head}
  save_file(tensors | (head if classes else {}), tmp_path / "x.safetensors")
  model, _ = fr.from_pretrained(tmp_path / "x.safetensors", NAME, **FIELDS)
  assert model.num_classes == classes


def test_a_new_head_is_drawn_for_other_classes(weights, variables, capsys):
  model, found = fr.from_pretrained(weights, NAME, num_classes=3, **FIELDS)
  assert model.num_classes == 3
  head = found["params"].pop("head")
  assert head["kernel"].shape == (64, 3)
  assert 0.005 < head["kernel"].std() < 0.02
  whole = {k: v for k, v in variables["params"].items() if k != "head"}
  assert_same(found, {**variables, "params": whole})
  assert capsys.readouterr().err == (
    "the weights have 10 classes and the model 3: its head is initialized "
    "anew\n"
  )


def test_the_network_of_a_run_has_a_hash(tmp_path, data_dir, mesh):
  """Its fields come from JSON, which has lists."""
  train(recipes.changed(recipes.tiniest(data_dir), {"num_steps": 1}), tmp_path)
  model, variables = fr.from_pretrained(tmp_path)
  fr.save_pretrained(tmp_path / "OUT", model, variables)
  again, _ = fr.from_pretrained(tmp_path / "OUT")
  assert hash(model) == hash(again.clone(dtype=model.dtype))
  # The folder of its checkpoints is the run too.
  assert fr.from_pretrained(tmp_path / "checkpoints")[0] == model


def test_a_folder_may_be_below_the_home(
  weights, variables, tmp_path, monkeypatch
):
  monkeypatch.setenv("HOME", str(tmp_path))
  model, found = fr.from_pretrained(weights, NAME, **FIELDS)
  fr.save_pretrained("~/OUT", model, found)
  assert (tmp_path / "OUT" / "config.json").is_file()
  assert_same(fr.from_pretrained("~/OUT")[1], variables)


def test_what_is_not_there_is_named():
  with pytest.raises(fr.weights.WeightsError, match="is no weight file no.pth"):
    fr.from_pretrained("no.pth")
  with pytest.raises(
    fr.weights.WeightsError, match="conv1, head and no params"
  ):
    fr.to_torch({"conv1": {}, "head": {}}, fr.create_model(NAME))


def test_no_classes_are_embeddings(weights, variables, capsys):
  trunk, found = fr.from_pretrained(weights, NAME, num_classes=0, **FIELDS)
  assert "head" not in found["params"]
  x = normal(0, (2, 8, 8, 3))
  embeddings, logits = (
    jax.jit(functools.partial(model.apply, train=False))(variables, x)
    for model, variables in ((trunk, found), (CASE.network(), variables))
  )
  head = variables["params"]["head"]
  np.testing.assert_allclose(
    np.asarray(embeddings @ head["kernel"]) + np.asarray(head["bias"]),
    logits,
    rtol=1e-4,
    atol=1e-4,
  )
  assert capsys.readouterr().out == ""


def test_the_channels_are_those_of_the_stem(state_dict, tmp_path):
  kernel = state_dict["conv1.weight"][:, :1].copy()
  save_file(state_dict | {"conv1.weight": kernel}, tmp_path / "x.safetensors")
  loaded = load_pretrained(tmp_path / "x.safetensors", NAME, **FIELDS)
  assert loaded.channels == 1


@pytest.mark.parametrize(
  ("values", "size", "share"),
  [
    ({}, 8, 1.0),
    # Its short side is 14 pixels: 13.7, rounded.
    ({"eval_image_size": 12, "center_crop_fraction": 0.875}, 12, 12 / 14),
    ({"image_size": [12, 10], "center_crop_fraction": 0.9}, (12, 10), 0.9),
    ({"eval_image_size": [12, 12], "center_crop_fraction": 0.9}, 12, 12 / 13),
  ],
)
def test_a_run_expects_images_as_it_evaluates_them(values, size, share):
  config = {
    "data": {"image_size": 8, **values},
    "augment": {"mean": [0.3], "std": [0.35]},
  }
  assert Preprocessing.of_run(config) == Preprocessing(
    size, share, "bilinear", (0.3,), (0.35,), resize_first=False
  )
  config["data"]["eval_resize_first"] = True
  assert Preprocessing.of_run(config).resize_first
