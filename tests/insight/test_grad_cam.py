"""Maps are those of the package grad-cam; pictures show them over the image."""

import functools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import __main__ as command
from flax_resnet.insight.grad_cam import explain, overlay
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal
from tests.insight import cams
from tests.weights import cases

SMALL = {"stage_sizes": (1, 2), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (2, 12, 8, 3))


@functools.cache
def small(**fields):
  model = fr.create_model("cifar_resnet20", **{**SMALL, **fields})
  return model, initial_variables(model, jax.random.key(1), IMAGES.shape[1:])


# The default suite compiles two of them; the others are deep.
@pytest.mark.parametrize(
  "cam",
  [
    pytest.param(
      cam,
      id=cam.key,
      marks=[]
      if cam.key in ("cifar_resnet20/None/True/19", "resnet18/stage2/True/75")
      else [pytest.mark.deep],
    )
    for cam in cams.all_cams()
  ],
)
def test_maps_are_the_references_of_grad_cam(cam):
  with np.load(cams.REFERENCES) as references:
    for name, ours in cams.our_maps(cam).items():
      side = cam.side + cases.CASES[cam.case].wider
      assert (ours.dtype, ours.shape) == (np.float32, (3, cam.side, side))
      np.testing.assert_allclose(
        cases.thinned(ours, 500), references[f"{cam.key}/{name}"], atol=1e-4
      )


@pytest.mark.deep
@pytest.mark.parametrize("cam", list(cams.all_cams()), ids=lambda cam: cam.key)
def test_maps_are_those_of_grad_cam(cam):
  pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
  cases.CASES[cam.case].skip_without_packages()
  from tests.insight import torch_cams

  theirs = torch_cams.their_maps(cam)
  for name, ours in cams.our_maps(cam).items():
    np.testing.assert_allclose(ours, theirs[name], atol=1e-4)


def test_the_map_of_the_last_stage_is_the_head_spread_out():
  """Behind a mean, a class's gradient is its row of the head (Zhou 2016)."""
  model, variables = small()
  features = model.apply(variables, IMAGES, train=False, method="features")
  kernel = variables["params"]["head"]["kernel"]
  every = np.einsum("bhwc,cn->nbhw", features["stage2"], kernel)
  classes = every.max((2, 3)).argmax(0)
  assert (every.max((2, 3)).max(0) > 0).all()
  maps, logits = explain(model, variables, IMAGES, classes)
  np.testing.assert_allclose(
    logits, model.apply(variables, IMAGES, train=False), atol=1e-5
  )
  for ours, of_class, label in zip(
    maps, every.swapaxes(0, 1), classes, strict=True
  ):
    coarse = np.maximum(of_class[label], 0).astype(np.float32)
    expected = cv2.resize(coarse, IMAGES.shape[2:0:-1])
    expected -= expected.min()
    np.testing.assert_allclose(ours, expected / expected.max(), atol=1e-4)


def test_loops_and_other_dtypes_have_the_same_maps():
  model, variables = small()
  expected = fr.grad_cam(model, variables, IMAGES, stage="stage2")
  scanned = model.clone(scan=True, remat=True)
  np.testing.assert_allclose(
    fr.grad_cam(scanned, stack(variables), IMAGES), expected, atol=1e-5
  )
  low = model.clone(dtype=jnp.bfloat16)
  found = fr.grad_cam(low, variables, IMAGES)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.1)
  listed = model.clone(stage_features=[4, 8])  # As a config.json has it.
  np.testing.assert_allclose(
    fr.grad_cam(listed, variables, IMAGES), expected, atol=1e-5
  )
  inside = jax.jit(lambda x, c: fr.grad_cam(model, variables, x, c))
  chosen = jnp.array([1, 2])
  np.testing.assert_allclose(
    inside(IMAGES, chosen),
    fr.grad_cam(model, variables, IMAGES, chosen),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("changes", "arguments", "message"),
  [
    ({"num_classes": 0}, {}, "has no head"),
    ({}, {"stage": "stage5"}, "stage is 'stage5': did you mean 'stage"),
    ({}, {"classes": [0, 3]}, "classes are 0 to 3: use 0 to 2"),
    ({}, {"classes": [0]}, r"int32 \[1\]: give one whole number"),
  ],
)
def test_what_cannot_be_is_one_sentence(changes, arguments, message):
  model, variables = small(**changes)
  with pytest.raises(ValueError, match=message):
    fr.grad_cam(model, variables, IMAGES, **arguments)


def test_an_overlay_leaves_alone_what_says_nothing():
  image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  cam = np.zeros((2, 4), np.float32)
  picture = overlay(image, cam, min_side=6)
  assert picture.shape == (6, 12, 3)
  np.testing.assert_array_equal(picture, image.repeat(3, 0).repeat(3, 1))
  cam[:, 3] = 1
  picture = overlay(image, cam, min_side=6)
  np.testing.assert_array_equal(
    picture[:, :6], image.repeat(3, 0).repeat(3, 1)[:, :6]
  )
  assert (picture[:, -1, 0] > 70).all()  # The color of the strongest is red.
  gray = overlay(image[..., :1], cam[:, :] * 0, min_side=2)
  np.testing.assert_array_equal(gray, image[..., :1].repeat(3, -1))


def test_predict_writes_overlays(call_main, runs, tmp_path):
  """A name twice, and a broken file, which has none."""
  call = functools.partial(call_main, command.main, "predict")
  rng = np.random.default_rng(0)
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    pixels = rng.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / folder / "x.png")
  network = ("--workdir", runs / "projection")
  arguments = (tmp_path / "a", tmp_path / "b", *network, "--cam")
  code, out, err = call(*arguments, tmp_path / "OUT", "--json")
  assert (code, err) == (0, "")
  rows = list(map(json.loads, out.splitlines()))
  names = ["x.png", "x-2.png"]
  assert [row["cam"] for row in rows] == [
    str(tmp_path / "OUT" / name) for name in names
  ]
  assert sorted(path.name for path in (tmp_path / "OUT").iterdir()) == sorted(
    names
  )
  for name in names:
    assert Image.open(tmp_path / "OUT" / name).size == (224, 224)
  plain = call(*arguments[:-1], "--json")[1]
  for row, alone in zip(rows, map(json.loads, plain.splitlines()), strict=True):
    assert [c["label"] for c in row["classes"]] == [
      c["label"] for c in alone["classes"]
    ]
  code, out, err = call(*arguments, tmp_path / "OUT")
  assert (code, out) == (2, "")
  assert "OUT is there already: choose another OUT" in err
  (tmp_path / "b" / "x.png").write_bytes(b"no image")
  code, out, _ = call(*arguments, tmp_path / "more")
  assert code == 2
  assert f"Grad-CAM: {tmp_path}/more/x.png" in out
  assert len(list((tmp_path / "more").iterdir())) == 1
