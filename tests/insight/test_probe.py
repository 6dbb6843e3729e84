"""What is measured at the blocks is what is there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from flax_resnet.insight.mistakes import find_mistakes
from flax_resnet.insight.probe import block_names, probe
from flax_resnet.models.stacking import stack
from flax_resnet.models.start import initial_variables
from tests.drawing import normal

SMALL = {"stage_sizes": (2, 2), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (6, 8, 8, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


@functools.cache
def look(name, **fields):
  model = fr.create_model(name, **{**SMALL, **fields})
  variables = initial_variables(model, jax.random.key(1), IMAGES.shape[1:])
  return model, variables, probe(model, variables, IMAGES, LABELS)


def test_gradients_are_those_of_the_blocks_one_by_one():
  """Back from the loss, each block applied by itself."""
  model, variables, found = look("cifar_resnet20", stage_sizes=(1, 1))
  maps, _ = model.apply(
    variables, IMAGES, train=True, method="features", mutable=["batch_stats"]
  )
  head = variables["params"]["head"]

  def loss(last):
    logits = last.mean((1, 2)) @ head["kernel"] + head["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, LABELS
    ).mean()

  def apply(name, features, strides):
    block = fr.BasicBlock(features, strides, shortcut="identity")
    own = {key: tree[name] for key, tree in variables.items()}
    return lambda x: block.apply(own, x, train=True, mutable=["batch_stats"])[0]

  value, of_last = jax.value_and_grad(loss)(maps["stage2"])
  second, first = apply("stage2_block1", 8, 2), apply("stage1_block1", 4, 1)
  (of_first,) = jax.vjp(second, maps["stage1"])[1](of_last)
  (of_stem,) = jax.vjp(first, maps["stem"])[1](of_first)
  assert found.loss == pytest.approx(float(value), rel=1e-5)
  assert [block.name for block in found.blocks] == block_names(model)
  assert [
    found.stem_gradient,
    *(block.gradient for block in found.blocks),
  ] == pytest.approx(
    [float(jnp.linalg.norm(g)) for g in (of_stem, of_first, of_last)], rel=1e-4
  )


def test_a_block_that_starts_as_its_shortcut_has_no_residual():
  _, _, found = look("cifar_resnet20", zero_init_residual=True)
  first = found.blocks[0]
  assert first.residual == 0
  assert first.cosine == pytest.approx(1)
  for block in found.blocks:
    # Nothing comes back through an F whose last scale is 0.
    assert block.gradient_by_skips == pytest.approx(block.gradient, rel=1e-5)


def test_the_skips_of_a_pre_activation_net_have_slope_1():
  _, _, found = look("cifar_preact_resnet110")
  for one, next_one in ((0, 1), (2, 3)):  # Of one stage.
    assert found.blocks[one].gradient_by_skips == pytest.approx(
      found.blocks[next_one].gradient_by_skips, rel=1e-5
    )
    assert found.blocks[one].gradient != pytest.approx(
      found.blocks[next_one].gradient, rel=1e-2
    )
  assert all(block.open == 1 for block in found.blocks)


def test_the_skips_of_the_first_paper_lose_what_relu_stops():
  _, _, found = look("cifar_resnet20")
  first, second = found.blocks[:2]
  assert first.gradient_by_skips < 0.99 * second.gradient_by_skips
  assert all(0.1 < block.open < 0.95 for block in found.blocks)


def test_scanned_blocks_are_seen_one_by_one():
  model, variables, found = look("cifar_resnet20", stage_sizes=(3, 3))
  scanned = probe(model.clone(scan=True), stack(variables), IMAGES, LABELS)
  assert scanned == found


def test_a_plain_net_has_no_skips():
  _, _, found = look("cifar_plain20")
  for block in found.blocks:
    assert block.residual is block.cosine is block.gradient_by_skips is None
    assert block.gradient > 0


def test_responses_are_taken_after_batch_norm():
  """Of an untrained net they are those of BatchNorm's scale: 1."""
  _, _, found = look("cifar_resnet20")
  assert list(found.responses) == [
    "stem/bn",
    *(
      f"stage{stage}_block{block}/bn{layer}"
      for stage in (1, 2)
      for block in (1, 2)
      for layer in (1, 2)
    ),
  ]
  np.testing.assert_allclose(list(found.responses.values()), 1, rtol=2e-3)


def test_responses_without_batch_norm_are_those_of_convolutions():
  _, variables, found = look("cifar_resnet20", norm="none")
  kernel = variables["params"]["stem"]["conv"]["kernel"]
  response = jax.lax.conv_general_dilated(
    IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert found.responses["stem/conv"] == pytest.approx(
    float(response.std()), rel=1e-5
  )
  assert len(found.responses) == 9


def test_mistakes_are_counted_and_the_surest_kept():
  """Images hold the prediction and how sure it is."""
  rng = np.random.default_rng(0)
  images = np.zeros((10, 1, 2, 1), np.uint8)
  images[..., 0, :] = rng.integers(0, 3, (10, 1, 1))
  images[..., 1, :] = rng.permutation(np.arange(50, 100, 5))[:, None, None]
  labels = rng.integers(0, 3, 10).astype(np.int32)

  def probabilities(pixels):
    sure = pixels[:, 0, 1, 0] / 100
    rest = np.repeat((1 - sure)[:, None] / 2, 3, 1)
    rest[np.arange(len(pixels)), pixels[:, 0, 0, 0]] = sure
    return rest

  batches = [
    {
      "image": images[first : first + 4],
      "label": labels[first : first + 4],
      "mask": np.arange(first, first + len(images[first : first + 4])) < 9,
    }
    for first in (0, 4, 8)
  ]
  found = find_mistakes(probabilities, batches, 3, keep=2)
  predicted = images[:9, 0, 0, 0]
  assert found.confusion.sum() == 9  # The last one is not real.
  for i in range(3):
    for j in range(3):
      assert (
        found.confusion[i, j] == ((labels[:9] == i) & (predicted == j)).sum()
      )
  wrong = np.flatnonzero(labels[:9] != predicted)
  surest = sorted(wrong, key=lambda n: -int(images[n, 0, 1, 0]))[:2]
  assert [mistake.index for mistake in found.most_confident] == surest
  every = find_mistakes(probabilities, batches, 3)
  assert {mistake.index for mistake in every.most_confident} == set(wrong)
  assert max(wrong) > 3  # Not in the first batch.
  assert [m.probability for m in found.most_confident] == pytest.approx(
    list(images[surest, 0, 1, 0] / 100)
  )
