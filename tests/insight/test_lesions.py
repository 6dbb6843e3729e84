"""Removed blocks are those whose F(x) is 0; swapped ones change places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import flax_resnet as fr
from flax_resnet.insight import lesions
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (3, 1), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (24, 8, 8, 3))


def network(**fields):
  model = fr.create_model("cifar_resnet20", **{**SMALL, **fields})
  return model, variables_of(model, IMAGES.shape)


def predictions(model, variables):
  return np.asarray(model.apply(variables, IMAGES, train=False)).argmax(-1)


def silenced(variables, block):
  """Returns variables with which the last norm of a block gives 0."""
  params = dict(variables["params"])
  last = {key: jnp.zeros_like(x) for key, x in params[block]["bn2"].items()}
  params[block] = {**params[block], "bn2": last}
  return {**variables, "params": params}


def test_a_removed_block_adds_nothing():
  model, variables = network()
  labels = predictions(model, variables)
  found = lesions.lesion(model, variables, IMAGES, jnp.asarray(labels), draws=2)
  assert found.intact == 1
  for name, accuracy in zip(found.names, found.without, strict=True):
    expected = predictions(model, silenced(variables, name)) == labels
    assert accuracy == pytest.approx(expected.mean()), name
  assert {k: len(v) for k, v in found.removed.items()} == dict.fromkeys(
    range(1, 5), 2
  )
  bare = variables
  for name in found.names:
    bare = silenced(bare, name)
  expected = (predictions(model, bare) == labels).mean()
  assert found.removed[4] == pytest.approx([expected] * 2)


def test_swapped_blocks_change_places():
  model, variables = network()
  labels = predictions(model, variables)
  found = lesions.lesion(model, variables, IMAGES, jnp.asarray(labels), draws=1)
  # Two blocks can change places: one order is another.
  one, two = "stage1_block2", "stage1_block3"
  swapped = {
    collection: {**tree, one: tree[two], two: tree[one]}
    for collection, tree in variables.items()
  }
  expected = (predictions(model, swapped) == labels).mean()
  correlation = stats.kendalltau([0, 1, 2, 3], [0, 2, 1, 3]).statistic
  assert found.reordered
  for ours, accuracy in found.reordered:
    assert ours == pytest.approx(correlation)
    assert accuracy == pytest.approx(expected)


def test_a_plain_net_keeps_the_blocks_that_change_the_shape():
  model, variables = network(shortcut="none")
  labels = jnp.asarray(predictions(model, variables))
  found = lesions.lesion(model, variables, IMAGES, labels, draws=1)
  assert [each is None for each in found.without] == [False] * 3 + [True]
  assert found.intact == 1
  assert max(found.removed) == 3


def test_loops_have_the_same_lesions(tmp_path):
  model, variables = network()
  variables = initial_variables(model, jax.random.key(0), IMAGES.shape[1:])
  labels = jnp.zeros(len(IMAGES), jnp.int32)
  found = lesions.lesion(model, variables, IMAGES, labels, draws=1)
  looped = lesions.lesion(
    model.clone(scan=True), stack(variables), IMAGES, labels, draws=1
  )
  assert looped == found
  files = lesions.draw({"a": found, "b": looped}, "A title", tmp_path / "x")
  assert [file.name for file in files] == ["x.png", "x.svg"]
