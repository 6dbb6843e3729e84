"""Gradients through single paths add up to the gradient of the network."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.insight import paths
from flax_resnet.insight.probe import probe
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (1, 2), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (6, 8, 8, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


@functools.cache
def network(name="cifar_resnet20"):
  model = fr.create_model(name, **SMALL)
  gradient = jax.jit(functools.partial(paths.path_gradient, model))
  return model, variables_of(model, IMAGES.shape), gradient


def through(gradient, variables, branches):
  branches = np.asarray(branches, np.float32)
  return gradient(variables, IMAGES, LABELS, branches, 1 - branches)


def test_all_paths_together_are_the_whole_gradient():
  model, variables, gradient = network()
  (found,) = probe(model, [variables], IMAGES, LABELS)
  ones = np.ones(3, np.float32)
  whole = gradient(variables, IMAGES, LABELS, ones, ones)
  assert float(jnp.linalg.norm(whole)) == pytest.approx(
    found.stem_gradient, rel=1e-4
  )
  single = [
    through(gradient, variables, branches)
    for branches in itertools.product((0, 1), repeat=3)
  ]
  np.testing.assert_allclose(sum(single), whole, rtol=1e-3, atol=1e-5)


def test_paths_are_single_ones_of_their_length():
  model, variables, gradient = network()
  found = paths.trace_paths(model, variables, IMAGES, LABELS, draws=5)
  assert [len(norms) for norms in found.norms] == [1, 3, 3, 1]
  single = {
    length: [
      float(jnp.linalg.norm(through(gradient, variables, branches)))
      for branches in itertools.product((0, 1), repeat=3)
      if sum(branches) == length
    ]
    for length in range(4)
  }
  for length, norms in enumerate(found.norms):
    for norm in norms:
      assert any(norm == pytest.approx(x, rel=1e-4) for x in single[length])


def test_shares_count_the_paths_of_a_length():
  found = paths.Paths([[2.0], [1.0, 3.0], [4.0]])  # Two blocks.
  assert found.shares == pytest.approx([0.2, 0.4, 0.4])
  assert found.effective_depth == pytest.approx(1.2)


def test_blocks_that_start_as_their_shortcuts_are_no_path():
  """What comes back through an F whose last scale is 0 is 0."""
  model = fr.create_model("cifar_resnet20", zero_init_residual=True, **SMALL)
  variables = initial_variables(model, jax.random.key(0), IMAGES.shape[1:])
  found = paths.trace_paths(model, variables, IMAGES, LABELS, draws=1)
  assert found.effective_depth == 0
  looped = paths.trace_paths(
    model.clone(scan=True), stack(variables), IMAGES, LABELS, draws=1
  )
  assert looped == found


def test_a_plain_net_is_refused():
  model = fr.create_model("cifar_plain20", **SMALL)
  with pytest.raises(ValueError, match="has one path"):
    paths.trace_paths(model, {}, IMAGES, LABELS)


def test_a_picture_has_a_curve_for_each_network(tmp_path):
  found = {"a": paths.Paths([[2.0], [1.0, 3.0], [4.0]])}
  files = paths.draw(found, "A title", tmp_path / "x")
  assert [file.name for file in files] == ["x.png", "x.svg"]
