"""Networks as ONNX models: onnxruntime computes the logits that ours have."""

import dataclasses
import functools

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.export import to_onnx, to_stablehlo
from flax_resnet.models.variables import stack
from flax_resnet.onnx_graph import to_onnx as function_to_onnx
from flax_resnet.predictor import Predictor
from flax_resnet.schema import height_and_width
from flax_resnet.weights.preprocessing import IMAGENET
from tests.drawing import normal, variables_of

WITH = "needs pip install -e '.[onnx]'"
onnx = pytest.importorskip("onnx", reason=WITH)
onnxruntime = pytest.importorskip("onnxruntime", reason=WITH)


def thin(name):
  """Returns a network of the zoo with few blocks, thin ones."""
  model = fr.create_model(name)
  count = len(model.stage_sizes)
  return model.clone(
    stage_sizes=(2, *(1,) * (count - 1)),
    # What ResNeXt's groups divide, and those of GroupNorm, in deep stems too.
    stage_features=(64,) * count,
    block_widths=model.block_widths and [(33, 34, 35)] * (count + 1),
    stem_features=None,
    num_classes=5,
  )


# Of those that differ in depth and width only, one.
FORMS = {str(thin(name)): name for name in fr.list_models()}
# What there is no rule for.
REFUSED = {
  *("resnet50_gn", "resnetv2_50d_gn", "resnetv2_50d_evos", "resnetv2_50d_frn"),
  *("resnetv2_152x4_bit", "resnest269e"),
  *("resnest50d_4s2x40d", "resnest50d_1s4x24d"),
}


@functools.cache
def network(name, size):
  model = thin(name)
  return model, variables_of(model, (1, *height_and_width(size), 3))


def predictor(model, variables, size):
  preprocessing = dataclasses.replace(IMAGENET, image_size=size)
  return Predictor(model, variables, preprocessing, "abcde")


def evaluate(model, variables, images):
  return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def check(exported, expected, images, nchw):
  """Asserts that a model is a valid one, and gives the expected logits."""
  model = onnx.load_from_string(exported)
  onnx.checker.check_model(model, full_check=True)
  # Images are transposed once at most, not at every convolution.
  operators = [node.op_type for node in model.graph.node]
  assert operators.count("Transpose") == (0 if nchw else 1)
  session = onnxruntime.InferenceSession(exported)
  assert session.get_outputs()[0].shape == ["b", 5]
  images = images.transpose(0, 3, 1, 2) if nchw else images
  for count in (1, 3):
    (found,) = session.run(["logits"], {"images": images[:count]})
    np.testing.assert_allclose(found, expected[:count], atol=1e-4)


def compare(name, size, *, pixels, nchw):
  model, variables = network(name, size)
  ours = predictor(model, variables, size)
  shape = (3, *height_and_width(size), 3)
  if pixels:
    images = np.random.default_rng(2).integers(0, 256, shape)
    images = images.astype(np.uint8)
    expected = jax.jit(ours.logits)(variables, images)
  else:
    images = np.asarray(normal(2, shape))
    expected = evaluate(model, variables, images)
  exported = to_onnx(ours, pixels=pixels, nchw=nchw)
  check(exported, expected, images, nchw)


# The pool of resnetv2_50 sees negative numbers: 0 would be a wrong padding.
@pytest.mark.parametrize(
  ("name", "size"),
  [
    *(("resnet18", 33), ("resnetv2_50", 32), ("cifar_resnet20", 8)),
    *(("resnetblur18", 33), ("ecaresnetlight", 33), ("resnet18", (33, 48))),
  ],
)
@pytest.mark.parametrize(("pixels", "nchw"), [(False, False), (True, True)])
def test_logits_are_ours(name, size, pixels, nchw):
  compare(name, size, pixels=pixels, nchw=nchw)


@pytest.mark.deep
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("name", sorted({*FORMS.values()} - REFUSED))
def test_logits_of_every_network_are_ours(name, pixels):
  compare(name, 33 if pixels else 32, pixels=pixels, nchw=pixels)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(
      name, marks=() if name in ("resnet50_gn",) else pytest.mark.deep
    )
    for name in sorted(REFUSED)
  ],
)
def test_other_networks_are_refused(name):
  assert name in FORMS.values()
  model, variables = network(name, 64)
  with pytest.raises(ValueError, match="as ONNX, there is no rule .*StableHLO"):
    to_onnx(predictor(model, variables, 64), pixels=False)
  exported = to_stablehlo(predictor(model, variables, 64), pixels=False)
  images = np.asarray(normal(2, (3, 64, 64, 3)))
  found = export.deserialize(bytearray(exported)).call(images)
  wanted = evaluate(model, variables, images)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  "fields",
  [
    {"scan": True},
    {"remat": True, "space_to_depth": True},
    {"norm": "none"},
    # Dilated; the pooled shortcut at stride 1 counts its padding.
    {"output_stride": 8, "shortcut": "pooled"},
    {"shortcut": "conv"},
    {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
  ],
  ids=lambda fields: "-".join(fields),
)
def test_every_form_of_a_network_is_exported(fields):
  model = network("resnet18", 32)[0].clone(**fields)
  images = np.asarray(normal(2, (3, 32, 32, 3)))
  plain = model.clone(scan=False, dtype=jnp.float32)
  variables = jax.tree.map(
    lambda x: x.astype(model.param_dtype), variables_of(plain, images.shape)
  )
  expected = evaluate(plain, variables, images)
  stacked = stack(variables) if model.scan else variables
  exported = to_onnx(predictor(model, stacked, 32), pixels=False)
  check(exported, expected, images, nchw=False)


@pytest.mark.parametrize(
  ("function", "name"),
  [
    (lambda x: jnp.cumsum(x.sum((2, 3)), 0), "cumsum"),
    (lambda x: x.reshape(-1, 12), "reshape"),
    (
      lambda x: jnp.broadcast_to(x.sum(1, keepdims=True), x.shape).sum((2, 3)),
      "reduce_sum",
    ),
    (lambda x: jax.lax.pad(x, 0.0, [(0, 0, 1)] * 4).sum((2, 3)), "pad"),
    (
      lambda x: jax.lax.conv_general_dilated(
        x, np.ones((1, 2, 1, 1), np.float32), (1, 1), [(0, 0)] * 2, (2, 2)
      ),
      "lhs_dilation",
    ),
  ],
)
def test_what_has_no_rule_is_not_exported(function, name):
  images = jax.ShapeDtypeStruct(export.symbolic_shape("b, 2, 2, 3"), np.float32)
  with pytest.raises(ValueError, match=name):
    function_to_onnx(function, images)


@pytest.mark.parametrize(
  "function",
  [
    lambda x: jnp.maximum(x, 1 - x).sum((1, 2)),
    lambda x: jnp.maximum(x, 1.0).sum((1, 2)),
    lambda x: jax.lax.slice_in_dim(x[None], 1, 2, 1, 3).sum((0, 2, 3)),
    lambda x: x.transpose(3, 0, 1, 2).sum((2, 3)).transpose() * x.sum((1, 2)),
    lambda x: jnp.pad(x, ((0, 0), (0, 1), (2, 0), (0, 0))).sum((1, 3)),
    lambda x: jnp.concatenate([x, 2 * x], 2).sum((1, 2)),
  ],
)
def test_functions_are_as_in_jax(function):
  images = jax.ShapeDtypeStruct(export.symbolic_shape("b, 2, 2, 3"), np.float32)
  model = function_to_onnx(function, images)
  session = onnxruntime.InferenceSession(model.SerializeToString())
  x = normal(3, (5, 2, 2, 3))
  (found,) = session.run(["logits"], {"images": np.asarray(x)})
  np.testing.assert_allclose(found, function(x), atol=1e-6)


def test_layers_have_their_names_in_the_graph():
  model, variables = network("resnet18", 33)
  exported = to_onnx(predictor(model, variables, 33), pixels=False)
  names = {x.name for x in onnx.load_from_string(exported).graph.node}
  assert {"stem/conv/Conv", "stage2_block1/shortcut/conv/Conv"} <= names
