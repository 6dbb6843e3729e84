"""Numbers of a probe are those of the blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from flax_resnet.insight.probe import probe
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal

# One size of networks for most tests: equal programs are compiled once.
SMALL = {"stage_sizes": (1, 3), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (6, 8, 8, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


@functools.cache
def probed(name, **fields):
  """Returns a network, its variables, and what goes through it."""
  model = fr.create_model(name, **{**SMALL, **fields})
  variables = initial_variables(model, jax.random.key(1), IMAGES.shape[1:])
  return model, variables, probe(model, [variables], IMAGES, LABELS)[0]


@jax.jit
def gradients_block_by_block(variables, maps):
  """Returns the loss and the norms at stem and blocks, back from the head."""
  head = variables["params"]["head"]

  def loss(last):
    logits = last.mean((1, 2)) @ head["kernel"] + head["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, LABELS
    ).mean()

  def apply(name, features, strides):
    block = fr.BasicBlock(features, strides, shortcut="identity")
    own = {key: tree[name] for key, tree in variables.items()}
    return lambda x: block.apply(own, x, train=True, mutable=["batch_stats"])[0]

  x, backward = maps["stem"], []
  for name, features, strides in (
    ("stage1_block1", 4, 1),
    ("stage2_block1", 8, 2),
    ("stage2_block2", 8, 1),
    ("stage2_block3", 8, 1),
  ):
    x, vjp = jax.vjp(apply(name, features, strides), x)
    backward.append(vjp)
  value, gradient = jax.value_and_grad(loss)(x)
  norms = [jnp.linalg.norm(gradient)]
  for vjp in reversed(backward):
    (gradient,) = vjp(gradient)
    norms.append(jnp.linalg.norm(gradient))
  return value, norms[::-1]


def test_gradients_are_those_of_the_blocks_one_by_one():
  model, variables, found = probed("cifar_resnet20")
  maps, _ = jax.jit(
    functools.partial(
      model.apply, train=True, method="features", mutable=["batch_stats"]
    )
  )(variables, IMAGES)
  loss, norms = gradients_block_by_block(variables, maps)
  assert [block.name for block in found.blocks] == model.block_names
  assert found.loss == pytest.approx(float(loss), rel=1e-5)
  assert found.gradients() == pytest.approx(list(map(float, norms)), rel=1e-4)


def test_a_block_that_starts_as_its_shortcut_has_no_residual():
  _, _, found = probed("cifar_resnet20", zero_init_residual=True)
  first = found.blocks[0]
  assert first.residual == 0
  assert first.cosine == pytest.approx(1)
  for block in found.blocks:
    # Nothing comes back through an F whose last scale is 0.
    assert block.gradient_by_skips == pytest.approx(block.gradient, rel=1e-5)


def test_the_skips_of_a_pre_activation_net_have_slope_1():
  _, _, found = probed("cifar_preact_resnet110", stage_sizes=(1, 2))
  _, first, second = found.blocks  # The last two, of one stage.
  assert first.gradient_by_skips == pytest.approx(
    second.gradient_by_skips, rel=1e-5
  )
  assert first.gradient != pytest.approx(second.gradient, rel=1e-2)
  assert all(block.open == 1 for block in found.blocks)


def test_the_skips_of_the_first_paper_lose_what_relu_stops():
  _, _, found = probed("cifar_resnet20")
  _, second, third, _ = found.blocks
  assert second.gradient_by_skips < 0.99 * third.gradient_by_skips
  assert all(0.1 < block.open < 0.95 for block in found.blocks)


def test_scanned_blocks_are_measured_one_by_one():
  model, variables, found = probed("cifar_resnet20")
  scanned = model.clone(scan=True)
  assert probe(scanned, [stack(variables)], IMAGES, LABELS) == [found]


def test_a_plain_net_has_no_skips():
  _, _, found = probed("cifar_plain20", stage_sizes=(1, 1))
  assert not found.has_skips
  for block in found.blocks:
    assert block.residual is block.cosine is block.gradient_by_skips is None
    assert block.gradient > 0


def test_responses_are_taken_after_batch_norm():
  """Of an untrained net they are those of BatchNorm's scale: 1."""
  model, _, found = probed("cifar_resnet20")
  assert list(found.responses) == [
    "stem/bn",
    *(f"{name}/bn{layer}" for name in model.block_names for layer in (1, 2)),
  ]
  np.testing.assert_allclose(list(found.responses.values()), 1, rtol=2e-3)


def test_responses_without_batch_norm_are_those_of_convolutions():
  _, variables, found = probed(
    "cifar_resnet20", norm="none", stage_sizes=(1, 1)
  )
  kernel = variables["params"]["stem"]["conv"]["kernel"]
  response = jax.lax.conv_general_dilated(
    IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert found.responses["stem/conv"] == pytest.approx(
    float(response.std()), rel=1e-5
  )
  assert len(found.responses) == 5
