"""What the device does to a batch, and that it is a function of its key."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from flax_resnet import augment, photometric
from flax_resnet.errors import InputError
from flax_resnet.schema import build
from tests.drawing import normal

KEY = jax.random.key(7)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 9, 8, 3), np.uint8)
LABELS = np.arange(8, dtype=np.int32) % 5
HALF = (0.5,) * 3


def make(batch_size=8, **options):
  return augment.make_augment(
    mean=HALF,
    std=HALF,
    channels=3,
    num_classes=5,
    batch_size=batch_size,
    **options,
  )


def test_normalize():
  y = augment.normalize(jnp.asarray(PIXELS), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
  expected = (PIXELS / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1, 2])
  np.testing.assert_allclose(y, expected, atol=1e-6)


def test_about_half_of_the_images_are_mirrored():
  images = normal(0, (64, 3, 4, 1))
  y, images = map(
    np.asarray, (jax.jit(augment.random_flip)(KEY, images), images)
  )
  mirrored = (y == images[:, :, ::-1]).all((1, 2, 3))
  same = (y == images).all((1, 2, 3))
  assert (mirrored ^ same).all()
  assert 16 < mirrored.sum() < 48


def test_crops_come_from_the_padded_image_at_every_offset():
  image = PIXELS[0].astype(np.float32)
  crop = jax.jit(functools.partial(augment.random_crop, padding=2))
  crops = np.asarray(crop(KEY, np.stack([image] * 400)))
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = {
    padded[i : i + 9, j : j + 8].tobytes(): (i, j)
    for i in range(5)
    for j in range(5)
  }
  found = {windows[np.ascontiguousarray(crop).tobytes()] for crop in crops}
  assert found == set(windows.values())


# A dot off the center, whose position after a map can be computed.
Y, X = np.mgrid[:33, :33] - 16.0
DOT = np.exp(-((Y + 6) ** 2 + (X - 4) ** 2) / 8)
DOTS = jnp.asarray(np.repeat(DOT[None, :, :, None], 200, 0), jnp.float32)


def moved(**amounts):
  """Returns row and column of each dot, from the center."""
  y = np.asarray(augment.random_affine(KEY, DOTS, **amounts))[..., 0]
  mass = y.sum((1, 2))
  return (y * Y).sum((1, 2)) / mass, (y * X).sum((1, 2)) / mass


def assert_within(values, limit, slack=0.1):
  assert np.abs(values).max() < limit * (1 + slack)
  assert values.max() > limit * 0.9
  assert values.min() < -limit * 0.9


def test_affine_maps_move_the_image_within_their_range():
  rows, columns = moved()
  np.testing.assert_allclose(rows, -6, atol=1e-3)
  np.testing.assert_allclose(columns, 4, atol=1e-3)
  rows, columns = moved(rotation=30.0)
  np.testing.assert_allclose(np.hypot(rows, columns), 52**0.5, atol=0.15)
  angles = np.rad2deg(np.arctan2(rows, columns) - np.arctan2(-6, 4))
  assert_within(angles, 30)
  rows, columns = moved(translation=0.25)
  assert_within(rows + 6, 33 / 4, 0.5)
  assert_within(columns - 4, 33 / 4, 0.5)
  rows, columns = moved(scaling=0.3)
  assert_within(np.log(rows / -6), 0.3)
  assert_within(np.log(columns / 4), 0.3)
  rows, columns = moved(shear=0.3)
  np.testing.assert_allclose(rows, -6, atol=0.1)
  assert_within((columns - 4) / 6, 0.3)


def test_affine_maps_repeat_the_edges():
  gray = jnp.full_like(DOTS, 0.7)
  y = augment.random_affine(
    KEY, gray, rotation=40.0, translation=0.3, scaling=0.5, shear=0.3
  )
  np.testing.assert_allclose(y, gray, rtol=1e-5)


B, H, W, N = 8, 14, 10, 8
KEYS = jax.random.split(jax.random.key(3), 3000)
# Each image has a color of its own, so that a pixel tells where it is from.
COLORS = np.broadcast_to(
  np.arange(1, B + 1, dtype=np.float32)[:, None, None, None], (B, H, W, 2)
)
PARTNER = np.array([1, 0, 3, 2, 5, 4, 7, 6])


def mixes(**alphas):
  """Returns how much of its partner each pixel and target of many batches is.

  Returns:
    Weights of pixels [key, b, h, w], and of targets [key, b].
  """
  one = lambda key: augment.mix(
    key, jnp.asarray(COLORS), jnp.eye(B, N), **alphas
  )
  images, targets = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(KEYS))
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  pixels = (images - COLORS) / (COLORS[PARTNER] - COLORS)
  return pixels[..., 0], targets[:, np.arange(B), PARTNER]


def test_mixup_blends_pairs_by_a_weight_of_the_batch():
  alpha = 0.2
  pixels, weights = mixes(mixup=alpha)
  assert ((weights >= 0) & (weights <= 1)).all()
  np.testing.assert_array_equal(weights, weights[:, :1].repeat(B, 1))
  np.testing.assert_allclose(
    pixels, np.broadcast_to(weights[..., None, None], pixels.shape), atol=2e-6
  )
  # Beta(alpha, alpha).
  assert weights[:, 0].mean() == pytest.approx(0.5, abs=0.03)
  variance = 1 / (4 * (2 * alpha + 1))
  assert weights[:, 0].var() == pytest.approx(variance, rel=0.06)


def boxes_of_the_paper(rng, alpha, count):
  """rand_bbox of github.com/clovaai/CutMix-PyTorch, for many batches."""
  boxes = np.zeros((count, H, W), bool)
  for box in boxes:
    ratio = np.sqrt(1 - rng.beta(alpha, alpha))
    half = int(H * ratio) // 2, int(W * ratio) // 2
    y, x = rng.integers(H), rng.integers(W)
    rows = slice(max(y - half[0], 0), y + half[0])
    box[rows, max(x - half[1], 0) : x + half[1]] = True
  return boxes


def test_cutmix_draws_the_boxes_of_the_paper():
  alpha = 0.5
  pixels, weights = mixes(cutmix=alpha)
  assert set(np.unique(pixels)) == {0, 1}
  assert (pixels == pixels[:, :1]).all()
  area = pixels.sum((2, 3)).astype(np.float32)
  np.testing.assert_array_equal(weights, area / np.float32(H * W))
  ours = pixels[:, 0]
  theirs = boxes_of_the_paper(np.random.default_rng(0), alpha, 12_000)
  # How often each pixel, each height and each width are in a box.
  np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.035)
  for axis, side in ((1, W), (2, H)):
    found, expected = (
      np.bincount(x.any(axis).sum(-1), minlength=side + 1) / len(x)
      for x in (ours > 0, theirs)
    )
    np.testing.assert_allclose(found, expected, atol=0.035)


def test_mixup_and_cutmix_alternate():
  pixels, weights = mixes(mixup=1.0, cutmix=1.0)
  cut = np.isin(pixels, (0, 1)).all((1, 2, 3))
  assert cut.mean() == pytest.approx(0.5, abs=0.03)
  np.testing.assert_allclose(pixels.mean((2, 3)), weights, atol=1e-5)


def box_of_each(images):
  """Returns rows of (height, width, top, left, share) of what is erased."""
  erased = images == 0
  rows, columns = erased.any(2), erased.any(1)
  found = (rows.sum(1), columns.sum(1), rows.argmax(1), columns.argmax(1))
  share = erased.mean((1, 2))
  np.testing.assert_allclose(found[0] * found[1] / (32 * 20), share, atol=1e-6)
  return np.stack([*found, share], 1)


@pytest.fixture(scope="module")
def erase():
  """Returns what is left of 8,000 images, for a probability: [b, h, w]."""
  images = jnp.ones((8_000, 32, 20, 1))

  def erase(probability):
    y = augment.random_erase(jax.random.key(0), images, probability)
    return np.asarray(y)[..., 0]

  return erase


# Of torchvision 0.28.0, 40,000 boxes in an image of 32 by 20.
MEANS = np.array((10.957, 9.975, 10.554, 5.053, 0.16734))
SPREADS = np.array((5.082, 4.087, 7.024, 3.941, 0.0877))


def assert_distributed_as_in_torchvision(boxes):
  assert (np.abs(boxes.mean(0) - MEANS) < 0.05 * SPREADS).all()
  np.testing.assert_allclose(boxes.std(0), SPREADS, rtol=0.04)


def test_boxes_are_erased_as_torchvision_did(erase):
  assert_distributed_as_in_torchvision(box_of_each(erase(1.0)))


def test_a_share_of_the_images_is_erased(erase):
  hit = (erase(0.25) == 0).any((1, 2))
  assert hit.mean() == pytest.approx(0.25, abs=0.015)


def test_augment_without_options_only_normalizes():
  images, labels = make()[0](KEY, jnp.asarray(PIXELS), LABELS)
  np.testing.assert_allclose(images, PIXELS / 127.5 - 1, atol=1e-5)
  assert labels is LABELS
  # Evaluation sees the images without any change of theirs.
  _, normalize = make(flip=True, crop_padding=2, rotation=10.0)
  np.testing.assert_allclose(
    normalize(jnp.asarray(PIXELS)), PIXELS / 127.5 - 1, atol=1e-5
  )


MOVES = {"flip": True, "crop_padding": 2, "rotation": 10.0}
MIXES = {"mixup": 0.2, "cutmix": 1.0}
ERASING = {"random_erasing": 0.5}
JITTER = {
  "vertical_flip": True,
  "brightness": 0.4,
  "hue": 0.1,
  "blur": 0.5,
}


@pytest.mark.parametrize(
  "options",
  [
    *(MOVES, MIXES, ERASING, JITTER),
    *(MOVES | MIXES, MOVES | MIXES | ERASING | JITTER),
  ],
  ids=lambda options: "+".join(options),
)
def test_each_part_has_its_own_key_and_its_own_position(options):
  """So one that is switched on leaves the draws of the others as they are.

  Erasing comes after mixing: what is erased is 0 and no blend.
  """

  def expected(key, images, labels):
    flip_key, crop_key, affine_key = jax.random.split(key, 3)
    mix_key, erase_key = jax.random.split(jax.random.fold_in(key, 3))
    images, targets = augment.scale(images, jnp.float32), labels
    if "hue" in options:
      colors = {"brightness": 0.4, "hue": 0.1}
      images = photometric.jitter(jax.random.fold_in(key, 4), images, **colors)
      images = photometric.random_blur(
        jax.random.fold_in(key, 5), images, 0.5, (0.1, 2.0)
      )
    images = augment.standardize(images, HALF, HALF)
    if "flip" in options:
      images = augment.random_affine(affine_key, images, rotation=10.0)
      images = augment.random_flip(flip_key, images)
    if "vertical_flip" in options:
      images = augment.random_flip(jax.random.fold_in(key, 6), images, axis=1)
    if "flip" in options:
      images = augment.random_crop(crop_key, images, 2)
    if "mixup" in options:
      targets = jax.nn.one_hot(labels, 5)
      images, targets = augment.mix(mix_key, images, targets, 0.2, 1.0)
    if "random_erasing" in options:
      images = augment.random_erase(erase_key, images, 0.5)
    return images, targets

  # The same program has the same bits, and need not be compiled to be compared.
  ours, theirs = (
    str(jax.make_jaxpr(function)(KEY, PIXELS, LABELS))
    for function in (make(**options)[0], expected)
  )
  assert ours == theirs


def test_mixing_ends_at_its_epoch():
  """Of 2.5 steps each: epoch 2 begins with step 5."""
  options = {"mixup": 0.5, "cutmix": 1.0}
  mixed = jax.jit(make(**options)[0])
  ending = jax.jit(make(mixup_off_epoch=2.0, steps_per_epoch=2.5, **options)[0])
  batch = KEY, jnp.asarray(PIXELS), jnp.asarray(LABELS)
  for step, wanted in (
    (4, mixed(*batch)),
    (5, (make()[1](batch[1]), jax.nn.one_hot(LABELS, 5))),
  ):
    found = ending(*batch, jnp.int32(step))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_batch_on_eight_devices_is_augmented_as_on_one():
  change = jax.jit(make(batch_size=64, cutmix=1.0, random_erasing=0.5)[0])
  batch = np.tile(PIXELS, (8, 1, 1, 1)), np.tile(LABELS, 8)
  mesh = jax.make_mesh((8,), ("batch",))
  split = NamedSharding(mesh, PartitionSpec("batch"))
  for key in KEYS[:4]:
    one, eight = change(key, *batch), change(key, *jax.device_put(batch, split))
    assert len(eight[0].devices()) == 8
    jax.tree.map(np.testing.assert_array_equal, one, eight)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"mean": (0.5,)},
      "config.augment: mean has 1 numbers and the images 3 channels: give one "
      "number a channel",
    ),
    (
      {"mixup": 1.0, "batch_size": 7},
      "config.augment: batch_size is 7, and mixup and cutmix take examples in "
      "pairs: use an even one",
    ),
    (
      {"crop_padding": -1},
      "config.augment.crop_padding is -1: use 0 to 512",
    ),
    (
      {"mixup_off_epoch": 2.0},
      "config.augment: mixup_off_epoch is 2.0 and nothing is mixed: use 0, or "
      "set mixup or cutmix",
    ),
    (
      {"blur_sigma": (2.0, 1.0)},
      "config.augment: blur_sigma is (2.0, 1.0): use two numbers, the smaller "
      "first",
    ),
  ],
)
def test_messages(options, message):
  given = {"channels": 3, "num_classes": 5, "batch_size": 8}
  given = {key: options.get(key, given[key]) for key in given}
  section = {"mean": HALF, "std": HALF} | {
    key: value for key, value in options.items() if key not in given
  }
  with pytest.raises(InputError) as error:
    build("config.augment", augment.make_augment, section, **given)
  assert str(error.value) == message
