"""Networks as LiteRT models: its interpreter computes the logits of ours."""

import jax
import numpy as np
import pytest

from flax_resnet.export import to_litert
from flax_resnet.predictor import Predictor
from flax_resnet.weights import load_pretrained
from tests.drawing import normal
from tests.test_export import evaluate, FORMS, network, predictor

WITH = "needs pip install -e '.[litert]' ai-edge-litert"
pytest.importorskip("litert_converter", reason=WITH)
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason=WITH)

# Of operators with one batch size, or with no form in LiteRT.
REFUSED = {
  *("resnet50_gn", "resnetv2_50d_gn", "resnetv2_50d_evos"),
  *("resnetv2_152x4_bit", "resnest269e"),
  *("resnest50d_4s2x40d", "resnest50d_1s4x24d"),
  *(name for name in FORMS.values() if name.startswith(("eca", "resnetblur"))),
}


def compute(model, images):
  """Returns the logits of a batch by the interpreter."""
  runtime = interpreter.Interpreter(model_content=model)
  (image,), (logits,) = (
    runtime.get_input_details(),
    runtime.get_output_details(),
  )
  assert list(image["shape"]) == [1, *images.shape[1:]]
  runtime.resize_tensor_input(image["index"], images.shape)
  runtime.allocate_tensors()
  runtime.set_tensor(image["index"], images)
  runtime.invoke()
  return runtime.get_tensor(logits["index"])


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(FORMS.values()))
def test_logits_of_every_network_are_ours_or_it_is_refused(name):
  """For a batch that was resized: each image has its own logits."""
  size = 32
  model, variables = network(name, size)
  ours = predictor(model, variables, size)
  if name in REFUSED:
    with pytest.raises(
      ValueError, match="cannot be written as LiteRT, .* ONNX"
    ):
      to_litert(ours, pixels=False)
    return
  images = np.asarray(normal(2, (3, size, size, 3)))
  found = compute(to_litert(ours, pixels=False), images)
  expected = np.asarray(evaluate(model, variables, images))
  np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.deep
def test_images_need_not_be_squares():
  size = (48, 33)
  model, variables = network("resnet18", size)
  images = np.asarray(normal(2, (3, *size, 3)))
  ours = predictor(model, variables, size)
  found = compute(to_litert(ours, pixels=False), images)
  expected = np.asarray(evaluate(model, variables, images))
  np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.deep
@pytest.mark.parametrize(
  ("weights", "tolerance", "bytes_each"),
  [("float32", 1e-5, 4.1), ("float16", 5e-3, 2.1), ("int8", 0.1, 1.2)],
)
def test_the_precision_of_weights(weights, tolerance, bytes_each):
  """Of the digits network, on pixels; tolerance over the logits' spread."""
  digits = Predictor.of(load_pretrained("cifar_resnet8.digits"))
  model = to_litert(digits, pixels=True, weights=weights)
  assert len(model) < bytes_each * 297_450
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
  expected = np.asarray(jax.jit(digits.logits)(digits.variables, images))
  found = compute(model, images)
  np.testing.assert_allclose(found, expected, atol=tolerance * expected.std())
