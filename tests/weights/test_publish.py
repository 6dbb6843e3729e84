"""Folders for the hub: this package and timm open what is written."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_sample_images

import flax_resnet as fr
from flax_resnet.models import tags
from flax_resnet.predictor import Predictor
from flax_resnet.weights import files, load_pretrained, publish, wrappers
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from tests.weights import cases
from tests.weights.conftest import CASE

NAMES = tuple(f"class {n}" for n in range(10))
RECIPE = {
  "model": {"name": CASE.model},
  "data": {
    **{"name": "digits", "train_split": "train"},
    **{"data_dir": "/secret/sets", "root": "/secret/photos"},
  },
}
RESULTS = {"val/top1": 0.9805, "val/count": 360, "step": 1_200}


def filled(name, **fields):
  """Returns a network and random variables for it."""
  model = fr.create_model(name, **fields)
  empty = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    cases.variable_shapes(model, fields.get("channels", 3)),
  )
  shapes = {k: v.shape for k, v in fr.to_torch(empty, model).items()}
  return model, fr.from_torch(cases.filled(shapes), model)


def test_a_written_folder_is_opened(variables, tmp_path, capsys):
  """With its fields, preprocessing and names, to the bit."""
  model = fr.create_model(CASE.model, **dict(CASE.fields))
  expected = Preprocessing(32, 0.95, "bicubic", (0.1, 0.2, 0.3), (1.0, 2, 3))
  fr.save_pretrained(
    tmp_path / "OUT",
    model,
    variables,
    preprocessing=expected,
    class_names=NAMES,
    recipe=RECIPE,
    results=RESULTS,
  )
  assert "timm has no architecture for cifar_resnet20 with stage_sizes" in (
    capsys.readouterr().err
  )
  assert {path.name for path in tmp_path.iterdir()} == {"OUT"}
  loaded = load_pretrained(tmp_path / "OUT")
  assert loaded.model == model
  assert (loaded.preprocessing, loaded.class_names) == (expected, NAMES)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
  card = (tmp_path / "OUT" / "README.md").read_text()
  assert "secret" not in card  # Where the data lies on a machine.
  for text in (
    "library_name: flax_resnet\n",
    "- **Data set:** `digits`, train\n",
    "- **Steps:** 1,200\n",
    "top-1 98.05% of 360 images, as measured\n",
    'fr.from_pretrained("hf-hub:OWNER/OUT")',
    "timm has no architecture for this network",
    '"name": "cifar_resnet20"',
  ):
    assert text in card
  # Where something is already, nothing is written.
  with pytest.raises(fr.weights.WeightsError, match="is there already"):
    fr.save_pretrained(tmp_path / "OUT", model, variables)


@pytest.mark.parametrize(
  ("name", "fields", "kept"),
  [
    ("cifar_plain20", {}, set()),
    ("cifar_preact_resnet164", {"stage_sizes": (1, 1, 1)}, {"stage_sizes"}),
    ("resnet18", {"num_classes": 0, "stage_sizes": (1, 1)}, None),
    # How it is trained and computed is not what it is.
    ("cifar_resnet8", {"remat": True, "stochastic_depth": 0.1}, set()),
  ],
)
def test_the_nearest_name_is_found(tmp_path, name, fields, kept):
  if kept is None:
    fields, kept = (
      {**fields, "stage_features": (8, 16)},
      {
        "stage_sizes",
        "stage_features",
      },
    )
  model, variables = filled(name, **fields)
  fr.save_pretrained(tmp_path / "OUT", model, variables)
  config = json.loads((tmp_path / "OUT" / "config.json").read_text())
  assert config["architecture"] == name
  assert set(config.get("flax_resnet", {}).get("fields", ())) == kept
  assert config["num_classes"] == model.num_classes
  features = model.clone(num_classes=0).apply(
    variables, jnp.zeros((1, 32, 32, 3)), train=False
  )
  assert config["num_features"] == features.shape[-1]
  _, back = fr.from_pretrained(tmp_path / "OUT")
  jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_the_crop_is_that_of_the_run_in_timm_too(variables, tmp_path):
  """It rounds down, and a run does not: 236 pixels for 224 of 0.95."""
  for size, share in ((224, 0.95), (224, 224 / 232), (160, 0.9), (12, 0.875)):
    config = {
      "data": {"image_size": size, "center_crop_fraction": share},
      "augment": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    expected = Preprocessing.of_run(config)
    out = tmp_path / f"{size}-{share:.4f}"
    fr.save_pretrained(out, CASE.network(), variables, preprocessing=expected)
    found = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert int(size / found["crop_pct"]) == round(size / share)
    back = load_pretrained(out).preprocessing
    assert back.resize_first  # As timm does with the folder.
    assert back.short_side == expected.short_side == round(size / share)


def test_images_that_are_no_squares_are_written(variables, tmp_path):
  """With the fraction of the run, by which timm rounds as the run does."""
  config = {
    "data": {"image_size": [96, 128], "center_crop_fraction": 0.95},
    "augment": {"mean": [0.5] * 3, "std": [0.5] * 3},
  }
  expected, out = Preprocessing.of_run(config), tmp_path / "OUT"
  assert expected.before_crop == (101, 134)
  fr.save_pretrained(out, CASE.network(), variables, preprocessing=expected)
  found = json.loads((out / "config.json").read_text())["pretrained_cfg"]
  assert found["input_size"] == [3, 96, 128]
  assert found["crop_pct"] == 0.95
  assert "96 x 128 pixels (crop_pct 0.95," in (out / "README.md").read_text()
  back = load_pretrained(out).preprocessing
  assert back == dataclasses.replace(expected, resize_first=True)


def test_a_folder_is_there_whole_or_not_at_all(
  variables, tmp_path, monkeypatch
):
  def fail(*arguments):
    raise OSError("the disk is full")

  with monkeypatch.context() as patch:
    patch.setattr(files, "write", fail)
    with pytest.raises(OSError, match="full"):
      fr.save_pretrained(tmp_path / "OUT", CASE.network(), variables)
  assert list(tmp_path.iterdir()) == []


# Of each kind that timm opens: its blocks, at full width.
IN_TIMM = {
  "resnet18": {},
  "resnet26d": {"channels": 1},
  "resnetv2_50": {},
  "resnext50_32x4d": {},
  "seresnet18": {},
  "ecaresnet26t": {},
  "resnetv2_50x1_bit": {},
  "resnest14d": {},
}


@pytest.mark.deep
@pytest.mark.parametrize("name", IN_TIMM)
def test_timm_opens_what_is_written(name, tmp_path):
  """The same logits and class names, by its own local-dir."""
  timm = load_timm()
  import torch

  channels = IN_TIMM[name].get("channels", 3)
  model, variables = filled(name, num_classes=3)
  if channels == 1:
    out = tmp_path / "three"
    fr.save_pretrained(out, model, variables)
    model, variables = fr.from_pretrained(out, in_channels=1)
  fr.save_pretrained(
    tmp_path / "OUT", model, variables, class_names=("ant", "bee", "cat")
  )
  theirs = timm.create_model(f"local-dir:{tmp_path / 'OUT'}", pretrained=True)
  assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
  assert theirs.num_classes == 3
  images = cases.images(64)[..., :channels]
  with torch.no_grad():
    expected = theirs.eval()(
      torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    ).numpy()
  _, back = fr.from_pretrained(tmp_path / "OUT")
  evaluate = jax.jit(functools.partial(model.apply, train=False))
  difference = np.abs(
    np.asarray(evaluate(back, jnp.asarray(images))) - expected
  ).max()
  assert difference <= 1e-4 * max(1, expected.std())
  card = (tmp_path / "OUT" / "README.md").read_text()
  assert "library_name: timm\n" in card


@pytest.mark.deep
def test_every_name_of_timm_is_written_as_timm_has_it():
  """Its name is found, and its first and last layers; also behind wrappers."""
  timm = load_timm()
  import torch

  for name in sorted(tags.timm_models()):
    with torch.device("meta"):
      theirs = timm.create_model(name)
    tensors, ours = theirs.state_dict(), fr.create_model(name)
    assert publish._name_and_fields(ours, None) == (name, {})
    cfg = publish._pretrained_cfg(list(tensors), ours, IMAGENET, 3)
    for key in ("first_conv", "classifier"):
      assert cfg[key] == theirs.default_cfg[key], name
    found, _ = wrappers.unwrap({f"net.{k}": v for k, v in tensors.items()})
    assert found.keys() == tensors.keys(), name


@pytest.mark.deep
@pytest.mark.parametrize(
  ("size", "interpolation"),
  [(96, "bicubic"), (96, "bilinear"), ((70, 109), "bicubic")],
)
def test_pixels_become_the_probabilities_of_timm(tmp_path, size, interpolation):
  """Ten photographs of odd sizes, by timm's own transform and model."""
  timm = load_timm()
  import torch

  model, variables = filled("resnet18", num_classes=10)
  head = jax.tree.map(lambda leaf: leaf * 0.03, variables["params"]["head"])
  variables = {**variables, "params": {**variables["params"], "head": head}}
  expected = Preprocessing(
    size, 0.9, interpolation, IMAGENET.mean, IMAGENET.std
  )
  fr.save_pretrained(tmp_path / "OUT", model, variables, preprocessing=expected)
  theirs = timm.create_model(
    f"local-dir:{tmp_path / 'OUT'}", pretrained=True
  ).eval()
  transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(theirs)
  )
  predictor = Predictor.of(load_pretrained(tmp_path / "OUT"))
  paths = photographs(tmp_path)
  with torch.no_grad():
    logits = [
      theirs(transform(Image.open(path).convert("RGB"))[None]) for path in paths
    ]
  wanted = torch.cat(logits).softmax(-1).numpy()
  assert 0.1 < wanted.max() < 0.999
  found = np.stack(list(predictor.predict(paths)))
  assert np.abs(found - wanted).max() <= 1e-4


def photographs(folder):
  """Writes ten photographs of odd sizes; returns their paths."""
  rng, paths = np.random.default_rng(0), []
  china, flower = load_sample_images().images
  for n in range(10):
    image = (china, flower)[n % 2]
    height, width = 2 * rng.integers(60, 210, 2) + 1
    top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
    path = folder / f"{n}.{'jpg' if n % 3 else 'png'}"
    part = image[top : top + height, left : left + width]
    Image.fromarray(part).save(path)
    paths.append(path)
  return paths


def load_timm():
  if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed")
  from tests.weights.torch_models import load_torchvision

  load_torchvision()
  import timm

  return timm


def test_names_of_classes_are_those_of_a_head(variables, tmp_path, capsys):
  out = tmp_path / "OUT"
  fr.save_pretrained(out, CASE.network(), variables, class_names=NAMES)
  capsys.readouterr()
  assert load_pretrained(out, num_classes=0).class_names == ()
  assert capsys.readouterr().err == ""
