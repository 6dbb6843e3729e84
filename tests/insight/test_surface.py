"""The loss on a plane: its middle, its directions, a plane that is known."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from flax_resnet.insight import surface
from flax_resnet.models.variables import initial_variables, stack
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (2, 1), "stage_features": (4, 8), "num_classes": 3}
IMAGES = normal(0, (5, 8, 8, 3))
LABELS = jnp.array([0, 1, 2, 0, 1])


@functools.cache
def network():
  model = fr.create_model("cifar_resnet20", **SMALL)
  return model, variables_of(model, IMAGES.shape)


@functools.cache
def found(seed=0):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(surface, "_BATCH_SIZE", 4)  # Two of 3, one filled up.
    return surface.loss_surface(*network(), IMAGES, LABELS, points=3, seed=seed)


def loss(variables):
  logits = network()[0].apply(variables, IMAGES, train=False)
  return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def test_the_middle_is_the_loss_of_the_network():
  _, variables = network()
  assert found().center == pytest.approx(float(loss(variables)), rel=1e-5)
  np.testing.assert_array_equal(found().steps, [-1, 0, 1])


def test_a_corner_is_the_loss_at_the_parameters_moved():
  _, variables = network()
  rng = np.random.default_rng(0)
  one, other = (
    surface.random_direction(variables["params"], rng) for _ in range(2)
  )
  for (i, x), (j, y) in (
    ((0, -1), (1, 0)),
    ((1, 0), (2, 1)),
    ((0, -1), (2, 1)),
  ):
    moved = jax.tree.map(
      lambda w, u, v: w + x * u + y * v,  # noqa: B023 - used at once.
      variables["params"],
      one,
      other,
    )
    expected = float(loss({**variables, "params": moved}))
    assert found().losses[i, j] == pytest.approx(expected, rel=1e-4), (i, j)


def test_directions_are_as_long_as_filters():
  """Of kernels [h, w, in, out] and [in, out]; the others do not move."""
  params = network()[1]["params"]
  direction = surface.random_direction(params, np.random.default_rng(0))
  moved = 0
  for weights, along in zip(
    *map(jax.tree.leaves, (params, direction)), strict=True
  ):
    if weights.ndim < 2:
      assert not along.any()
      continue
    moved += 1
    axes = tuple(range(weights.ndim - 1))
    np.testing.assert_allclose(
      np.sqrt((np.asarray(along) ** 2).sum(axes)),
      np.sqrt((np.asarray(weights) ** 2).sum(axes)),
      rtol=1e-5,
    )
  assert moved == 1 + 2 * 3 + 1  # Stem, blocks, head.


def test_a_filter_of_zeros_stays():
  direction = surface.random_direction(
    {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)},
    np.random.default_rng(0),
  )
  assert not any(leaf.any() for leaf in direction.values())


def test_directions_are_those_of_the_seed():
  params = network()[1]["params"]
  one, again, other = (
    surface.random_direction(params, np.random.default_rng(seed))
    for seed in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, one, again)
  kernel = one["head"]["kernel"] - other["head"]["kernel"]
  assert np.abs(kernel).min() > 1e-6
  assert found(1).center == found().center
  assert abs(found(1).losses[0, 0] - found().losses[0, 0]) > 1e-3


class Logistic(fr.ResNet):
  """Logits [w * x, 0]: one parameter, and the loss is known."""

  def __call__(self, images, *, train):
    return self.logits(images)

  @nn.compact
  def logits(self, images):
    kernel = self.param("kernel", nn.initializers.ones, (1, 1))
    logit = images.reshape(-1, 1) @ kernel
    return jnp.concatenate([logit, jnp.zeros_like(logit)], 1)


def test_a_plane_that_is_known():
  """Where w = 1 + a * x + b * y, a and b 1 or -1, it is log(1 + exp(-w))."""
  model = Logistic((1,), fr.BasicBlock, (1,), num_classes=2)
  variables = {"params": {"kernel": jnp.ones((1, 1))}}
  labels = jnp.zeros(3, jnp.int32)
  given = surface.loss_surface(
    model, variables, jnp.ones((3, 1, 1, 1)), labels, points=5, extent=2.0
  )
  rng = np.random.default_rng(0)
  a, b = (
    surface.random_direction(variables["params"], rng)["kernel"].item()
    for _ in range(2)
  )
  assert [abs(a), abs(b)] == pytest.approx([1, 1])
  x, y = np.meshgrid(given.steps, given.steps, indexing="ij")
  expected = np.log1p(np.exp(-(1 + a * x + b * y)))
  np.testing.assert_allclose(given.losses, expected, rtol=1e-5)


@pytest.mark.deep
def test_loops_have_the_same_surface():
  model, _ = network()
  variables = initial_variables(model, jax.random.key(0), IMAGES.shape[1:])
  whole, looped = (
    surface.loss_surface(it, each, IMAGES, LABELS, points=3).losses
    for it, each in (
      (model, variables),
      (model.clone(scan=True), stack(variables)),
    )
  )
  np.testing.assert_array_equal(whole, looped)


@pytest.mark.parametrize("points", [1, 4])
def test_the_network_is_a_point(points):
  with pytest.raises(ValueError, match="odd number from 3"):
    surface.loss_surface(*network(), IMAGES, LABELS, points=points)


def test_surfaces_have_one_scale(tmp_path):
  steps = np.linspace(-1, 1, 3, dtype=np.float32)
  losses = np.geomspace(0.1, 3, 9, dtype=np.float32).reshape(3, 3)
  wild = losses.copy()
  wild[0, 0] = np.nan
  wild[2, 2] = 1e30
  both = {
    "a": surface.Surface(steps, losses),
    "b": surface.Surface(steps, wild),
  }
  assert both["a"].share_below(0.5) == pytest.approx(4 / 9)
  files = surface.draw(both, "A title", tmp_path / "x")
  assert [file.name for file in files] == ["x.png", "x.svg"]
