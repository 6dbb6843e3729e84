import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from flax_resnet import augment
from tests.drawing import normal

B, H, W, N = 8, 14, 10, 8
KEYS = jax.random.split(jax.random.key(3), 3000)
# Each image has a colour of its own, so that a pixel tells where it is from.
IMAGES = jnp.broadcast_to(
  jnp.arange(1.0, B + 1)[:, None, None, None], (B, H, W, 2)
)
TARGETS = jnp.eye(B, N)
PARTNER = np.array([1, 0, 3, 2, 5, 4, 7, 6])


def draws(function, *amounts):
  """Returns images [key, b, h, w, c] and targets [key, b, n]."""
  one = lambda key: function(key, IMAGES, TARGETS, *amounts)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(KEYS))


def taken(images):
  """Returns how much of its partner each pixel is, [key, b, h, w]."""
  own = np.asarray(IMAGES)
  return ((images - own) / (own[PARTNER] - own))[..., 0]


def weights(targets):
  """Returns how much of its partner each target is, [key, b]."""
  return targets[:, np.arange(B), PARTNER]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_pairs_by_a_weight_of_the_batch(alpha):
  images, targets = draws(augment.mixup, alpha)
  weight = weights(targets)
  assert ((weight >= 0) & (weight <= 1)).all()
  np.testing.assert_array_equal(weight, weight[:, :1].repeat(B, 1))
  pixels = taken(images)
  np.testing.assert_allclose(
    pixels, np.broadcast_to(weight[..., None, None], pixels.shape), atol=2e-6
  )
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  # Beta(alpha, alpha).
  assert weight[:, 0].mean() == pytest.approx(0.5, abs=0.03)
  assert weight[:, 0].var() == pytest.approx(
    1 / (4 * (2 * alpha + 1)), rel=0.06
  )


def test_the_pasted_area_is_the_weight_of_the_label():
  images, targets = draws(augment.cutmix, 1.0)
  pixels = taken(images)
  assert set(np.unique(pixels)) == {0, 1}
  area = pixels.sum((2, 3)).astype(np.float32)
  np.testing.assert_array_equal(weights(targets), area / np.float32(H * W))
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  assert (pixels == pixels[:, :1]).all()
  assert len(np.unique(area)) > 30


def papers_boxes(rng, alpha, count):
  """rand_bbox of github.com/clovaai/CutMix-PyTorch, for many batches."""
  boxes = np.zeros((count, H, W), bool)
  for box in boxes:
    ratio = np.sqrt(1 - rng.beta(alpha, alpha))
    half = int(H * ratio) // 2, int(W * ratio) // 2
    y, x = rng.integers(H), rng.integers(W)
    rows = slice(max(y - half[0], 0), y + half[0])
    box[rows, max(x - half[1], 0) : x + half[1]] = True
  return boxes


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_draws_the_boxes_of_the_paper(alpha):
  ours = taken(draws(augment.cutmix, alpha)[0])[:, 0]
  theirs = papers_boxes(np.random.default_rng(0), alpha, 12_000)
  # How often each pixel, each height and each width are in a box.
  np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.035)
  for axis, side in ((1, W), (2, H)):
    found, wanted = (
      np.bincount(x.any(axis).sum(-1), minlength=side + 1) / len(x)
      for x in (ours > 0, theirs)
    )
    np.testing.assert_allclose(found, wanted, atol=0.035)


def test_both_alternate():
  images, targets = draws(augment.mixup_or_cutmix, 1.0, 1.0)
  pixels = taken(images)
  cut = np.isin(pixels, (0, 1)).all((1, 2, 3))
  assert cut.mean() == pytest.approx(0.5, abs=0.03)
  np.testing.assert_allclose(pixels.mean((2, 3)), weights(targets), atol=1e-5)


def boxes(images):
  """Returns rows of (height, width, top, left, share) of what is erased."""
  erased = images == 0
  rows, columns = erased.any(2), erased.any(1)
  found = (rows.sum(1), columns.sum(1), rows.argmax(1), columns.argmax(1))
  share = erased.mean((1, 2))
  np.testing.assert_allclose(found[0] * found[1] / (32 * 20), share, atol=1e-6)
  return np.stack([*found, share], 1)


def erased(count, probability):
  images = jnp.ones((count, 32, 20, 1))
  key = jax.random.key(0)
  return np.asarray(augment.random_erasing(key, images, probability))[..., 0]


# Of torchvision 0.28.0, 40,000 boxes in an image of 32 by 20.
MEANS = (10.957, 9.975, 10.554, 5.053, 0.16734)
SPREADS = (5.082, 4.087, 7.024, 3.941, 0.0877)


def test_boxes_are_erased_as_by_torchvision():
  ours = boxes(erased(20_000, 1.0))
  means, spreads = np.array(MEANS), np.array(SPREADS)
  check_spread(ours, means, spreads)
  if all(map(importlib.util.find_spec, ("torch", "torchvision"))):
    theirs = torchvision_boxes(5_000)
    check_spread(theirs, means, spreads)
    wanted = np.quantile(theirs, (0.05, 0.25, 0.5, 0.75, 0.95), 0)
    found = np.quantile(ours, (0.05, 0.25, 0.5, 0.75, 0.95), 0)
    assert (np.abs(found - wanted) <= 0.1 * spreads + (1, 1, 1, 1, 0)).all()


def check_spread(found, means, spreads):
  assert (np.abs(found.mean(0) - means) < 0.05 * spreads).all()
  np.testing.assert_allclose(found.std(0), spreads, rtol=0.04)


def torchvision_boxes(count):
  from tests.weights import torch_models

  torch_models.load_torchvision()
  import torch
  from torchvision.transforms import RandomErasing

  torch.manual_seed(0)
  image = torch.ones(1, 32, 20)
  erase = RandomErasing(1.0)
  return boxes(np.stack([erase(image)[0].numpy() for _ in range(count)]))


@pytest.mark.parametrize("probability", [0.1, 0.25])
def test_a_share_of_the_images_is_erased(probability):
  hit = (erased(8_000, probability) == 0).any((1, 2))
  assert hit.mean() == pytest.approx(probability, abs=0.015)


def test_what_is_not_erased_stays():
  images = normal(1, (50, 9, 9, 3))
  y = augment.random_erasing(jax.random.key(2), images, 0.5)
  same = np.asarray(y == images)
  assert ((y == 0) | same).all()
  assert same.mean() > 0.8
  # All channels of a pixel are erased.
  assert (same.any(-1) == same.all(-1)).all()


def test_a_batch_on_eight_devices_is_mixed_as_on_one():
  mix = augment.make_mix(
    mixup_alpha=0.5, cutmix_alpha=1.0, num_classes=N, batch_size=64
  )
  images = normal(1, (64, H, W, 3))
  labels = jnp.arange(64) % N

  @jax.jit
  def change(key, images, labels):
    images, targets = mix(key, images, labels)
    return augment.random_erasing(key, images, 0.5), targets

  mesh = jax.make_mesh((8,), ("batch",))
  split = NamedSharding(mesh, PartitionSpec("batch"))
  for key in KEYS[:4]:
    one = change(key, images, labels)
    eight = change(key, *jax.device_put((images, labels), split))
    assert len(eight[0].devices()) == 8
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_labels_stay_where_nothing_is_mixed():
  mix = augment.make_mix(
    mixup_alpha=0.0, cutmix_alpha=0.0, num_classes=N, batch_size=7
  )
  labels = jnp.arange(7)
  images, targets = mix(KEYS[0], IMAGES[:7], labels)
  assert targets is labels
  np.testing.assert_array_equal(images, IMAGES[:7])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mixup_alpha": -0.1}, "mixup is -0.1: use 0 or more"),
    ({"cutmix_alpha": np.nan}, "cutmix is nan: use 0 or more"),
    ({"mixup_alpha": 1.0, "batch_size": 7}, "batch_size is 7, .*: use an even"),
    (
      {"cutmix_alpha": 1.0, "batch_size": 7},
      "batch_size is 7, .*: use an even",
    ),
  ],
)
def test_numbers_out_of_range_are_told(changes, message):
  off = dict.fromkeys(("mixup_alpha", "cutmix_alpha"), 0.0)
  given = {"num_classes": 5, "batch_size": 8}
  with pytest.raises(ValueError, match=message):
    augment.make_mix(**(off | given | changes))
