"""F(x) beside x: as `probe` has it, by image, and through training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.insight import residuals
from flax_resnet.insight.probe import probe
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (1, 2), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (6, 8, 8, 3))


def test_one_image_many_times_has_the_ratio_of_the_batch():
  """`probe` has the norms of all images together; here they are alike."""
  model = fr.create_model("cifar_resnet20", **SMALL)
  variables = variables_of(model, IMAGES.shape)
  same = jnp.tile(IMAGES[:1], (4, 1, 1, 1))
  (expected,) = probe(model, [variables], same, jnp.zeros(4, jnp.int32))
  found = residuals.measure_residuals(model, [(7, variables)], same)
  assert list(found.names) == [block.name for block in expected.blocks]
  assert found.last.shape == (3, 4)
  for ratios, block in zip(found.last, expected.blocks, strict=True):
    assert ratios == pytest.approx(np.full(4, block.residual), rel=1e-4)


def test_steps_rise_and_images_differ():
  model = fr.create_model("cifar_resnet20", **SMALL)
  variables = variables_of(model, IMAGES.shape)
  states = [
    (9, jax.tree.map(lambda leaf: 2 * leaf, variables)),
    (2, variables),
  ]
  found = residuals.measure_residuals(model, states, IMAGES)
  assert list(found.ratios) == [2, 9]
  assert found.last is found.ratios[9]
  assert np.ptp(found.last, axis=1).min() > 0
  np.testing.assert_array_equal(
    found.medians()[9], np.median(found.ratios[9], axis=1)
  )


def test_blocks_that_start_as_their_shortcuts_add_nothing():
  model = fr.create_model("cifar_resnet20", zero_init_residual=True, **SMALL)
  variables = initial_variables(model, jax.random.key(0), IMAGES.shape[1:])
  found = residuals.measure_residuals(model, [(0, variables)], IMAGES)
  assert not found.last.any()
  looped = residuals.measure_residuals(
    model.clone(scan=True), [(0, stack(variables))], IMAGES
  )
  np.testing.assert_array_equal(looped.last, found.last)


def test_a_plain_net_is_refused():
  model = fr.create_model("cifar_plain20", **SMALL)
  with pytest.raises(ValueError, match="adds no x"):
    residuals.measure_residuals(model, [], IMAGES)
