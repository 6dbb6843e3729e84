"""Gradients along a line are those of the points, and their correlation."""

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.insight import shattering
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (1, 1), "stage_features": (4, 4), "num_classes": 3}
LINE = shattering.line(normal(1, (8, 8, 3)), normal(2, (8, 8, 3)), 12)


def test_correlations_are_those_of_numpy():
  series = np.random.default_rng(0).normal(size=(9, 1)).cumsum(0)
  centered = (series - series.mean())[:, 0]
  expected = np.correlate(centered, centered, "full")[8:]
  np.testing.assert_allclose(
    shattering.correlate(series), expected / expected[0]
  )
  # Of vectors, products are sums over their entries.
  many = np.concatenate([series, np.zeros((9, 2))], axis=1)
  np.testing.assert_allclose(
    shattering.correlate(many), shattering.correlate(series)
  )


def test_white_noise_has_no_correlation():
  noise = np.random.default_rng(0).normal(size=(400, 20))
  found = shattering.correlate(noise)
  assert found[0] == 1
  assert np.abs(found[1:50]).max() < 0.05


def test_a_line_turns_from_one_image_into_another():
  images = np.asarray(LINE)
  np.testing.assert_allclose(images[0], normal(1, (8, 8, 3)), atol=1e-6)
  np.testing.assert_allclose(images[-1], normal(2, (8, 8, 3)), atol=1e-6)
  assert images.std((1, 2, 3)) == pytest.approx(np.ones(12), abs=0.2)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_gradients_are_those_of_single_points(norm):
  """With the statistics that training would normalize the points by."""
  model = fr.create_model("cifar_resnet20", norm=norm, **SMALL)
  variables = variables_of(model, LINE.shape)
  found = shattering.autocorrelation(model, variables, LINE, batch_size=5)
  used = dict(variables)
  if norm == "batch":  # Averaged until nothing of the old ones is left.
    update = jax.jit(
      lambda given: model.apply(
        given, LINE, train=True, mutable=["batch_stats"]
      )[1]
    )
    for _ in range(200):
      used |= update(used)

  def output(image):
    return model.apply(used, image[None], train=False).sum()

  gradients = jax.jit(jax.vmap(jax.grad(output)))(LINE)
  expected = shattering.correlate(np.asarray(gradients).reshape(12, -1))
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_picture_has_a_curve_for_each_network(tmp_path):
  found = {"a": np.ones(30), "b": [1.0, 0.5]}
  files = shattering.draw(found, "A title", tmp_path / "x")
  assert [file.name for file in files] == ["x.png", "x.svg"]
