import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import augment

KEY = jax.random.key(7)
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 9, 8, 3), np.uint8)
PIXELS = jnp.asarray(IMAGES)
FLOATS = PIXELS.astype(jnp.float32)
LABELS = jnp.arange(32) % 5


def test_normalize():
  y = augment.normalize(PIXELS, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
  wanted = (IMAGES / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1, 2])
  np.testing.assert_allclose(y, wanted, atol=1e-6)


def test_about_half_of_the_images_are_mirrored():
  y = np.asarray(augment.random_flip(KEY, FLOATS))
  mirrored = (y == IMAGES[:, :, ::-1]).all((1, 2, 3))
  same = (y == IMAGES).all((1, 2, 3))
  assert (mirrored ^ same).all()
  assert 8 < mirrored.sum() < 24


def test_crops_come_from_the_padded_image_at_every_offset():
  many = jnp.repeat(FLOATS[:1], 400, 0)
  crops = np.asarray(augment.random_crop(KEY, many, 2))
  padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)))
  windows = {
    padded[i : i + 9, j : j + 8].astype(np.float32).tobytes(): (i, j)
    for i in range(5)
    for j in range(5)
  }
  found = [windows[np.ascontiguousarray(crop).tobytes()] for crop in crops]
  assert set(found) == set(windows.values())


def test_an_affine_map_of_nothing_changes_nothing():
  y = augment.random_affine(KEY, FLOATS)
  np.testing.assert_allclose(y, IMAGES, atol=1e-3)


def test_affine_maps_repeat_the_edges():
  grey = jnp.full((20, 9, 9, 1), 0.7)
  y = augment.random_affine(
    KEY, grey, rotation=40.0, translation=0.3, scaling=0.5, shear=0.3
  )
  np.testing.assert_allclose(y, grey, rtol=1e-5)


@pytest.mark.parametrize(
  "amount",
  [
    {"rotation": 30.0},
    {"translation": 0.25},
    {"scaling": 0.3},
    {"shear": 0.3},
  ],
)
def test_affine_maps_move_the_image_within_their_range(amount):
  """A dot off the centre, whose place after the map can be computed."""
  y, x = np.mgrid[:33, :33] - 16.0
  dot = np.exp(-((y + 6) ** 2 + (x - 4) ** 2) / 8)[None, :, :, None]
  dots = jnp.asarray(np.repeat(dot, 300, 0), jnp.float32)
  moved = np.asarray(augment.random_affine(KEY, dots, **amount))[..., 0]
  mass = moved.sum((1, 2))
  rows = (moved * y).sum((1, 2)) / mass
  columns = (moved * x).sum((1, 2)) / mass
  if "rotation" in amount:
    np.testing.assert_allclose(np.hypot(rows, columns), 52**0.5, atol=0.15)
    angles = np.rad2deg(np.arctan2(rows, columns) - np.arctan2(-6, 4))
    check_range(angles, 30)
  elif "translation" in amount:
    check_range(rows + 6, 33 / 4, 0.5)
    check_range(columns - 4, 33 / 4, 0.5)
  elif "scaling" in amount:
    check_range(np.log(rows / -6), 0.3)
    check_range(np.log(columns / 4), 0.3)
  else:
    np.testing.assert_allclose(rows, -6, atol=0.1)
    check_range((columns - 4) / 6, 0.3)


def check_range(values, limit, slack=0.1):
  assert np.abs(values).max() < limit * (1 + slack)
  assert values.max() > limit * 0.9
  assert values.min() < -limit * 0.9


def make(**changes):
  nothing = dict.fromkeys(("rotation", "translation", "scaling", "shear"), 0.0)
  common = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
  none = {**nothing, "flip": False, "crop_padding": 0}
  given = {"channels": 3, "num_classes": 5, "batch_size": 32}
  return augment.make_augment(**(common | none | given | changes))


def test_augment_is_a_function_of_its_key():
  change, _ = make(flip=True, crop_padding=2, rotation=10.0)
  (one, _), (same, _) = change(KEY, PIXELS, LABELS), change(KEY, PIXELS, LABELS)
  other, _ = change(jax.random.key(8), PIXELS, LABELS)
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


def test_augment_without_options_only_normalizes():
  change, _ = make()
  images, labels = change(KEY, PIXELS, LABELS)
  np.testing.assert_allclose(images, IMAGES / 127.5 - 1, atol=1e-5)
  assert labels is LABELS
  # Evaluation sees the images without any change of theirs.
  _, prepare = make(flip=True, crop_padding=2, rotation=10.0)
  np.testing.assert_allclose(prepare(PIXELS), IMAGES / 127.5 - 1, atol=1e-5)


def test_the_mixing_leaves_the_draws_of_the_rest_as_they_are():
  """Runs of before there was mixing have the same bits."""
  moves = {"flip": True, "crop_padding": 2, "rotation": 10.0}
  flip_key, crop_key, affine_key = jax.random.split(KEY, 3)
  wanted = augment.normalize(PIXELS, (0.5,) * 3, (0.5,) * 3)
  wanted = augment.random_affine(affine_key, wanted, rotation=10.0)
  wanted = augment.random_flip(flip_key, wanted)
  wanted = augment.random_crop(crop_key, wanted, 2)
  images, labels = make(**moves)[0](KEY, PIXELS, LABELS)
  np.testing.assert_array_equal(images, wanted)
  assert labels is LABELS
  images, _ = make(**moves, random_erasing=1.0)[0](KEY, PIXELS, LABELS)
  kept = np.asarray(images == wanted)
  assert 0.6 < kept.mean() < 0.95


@pytest.mark.parametrize(
  "amounts", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_mixed_batches_have_soft_targets(amounts):
  change, prepare = make(**amounts)
  own = jax.nn.one_hot(LABELS, 5)
  images, targets = change(KEY, PIXELS, LABELS)
  share = targets[0, LABELS[1]]
  assert 0 < share < 1
  partners = own.reshape(16, 2, 5)[:, ::-1].reshape(32, 5)
  np.testing.assert_allclose(
    targets, own * (1 - share) + partners * share, atol=1e-6
  )
  assert (images != prepare(PIXELS)).any((1, 2, 3)).all()


def test_erasing_comes_after_mixing():
  """So what is erased of an image is 0 and no blend with its partner."""
  change, _ = make(mixup=1.0, random_erasing=1.0)
  images, _ = change(KEY, jnp.full_like(PIXELS, 255), LABELS)
  assert set(np.unique(np.asarray(images).round(5))) == {0, 1}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mean": (0.5,)}, "mean has 1 numbers and the images 3 channels"),
    ({"std": (1.0, 0.0, 1.0)}, "std is .*: use numbers above 0"),
    ({"std": (1.0, np.nan, 1.0)}, "std is .*: use numbers above 0"),
    ({"crop_padding": -1}, "crop_padding is -1"),
    ({"rotation": np.inf}, "rotation is inf"),
    ({"mixup": -0.1}, "mixup is -0.1: use 0 or more"),
    ({"cutmix": np.inf}, "cutmix is inf: use 0 or more"),
    ({"random_erasing": 1.5}, "random_erasing is 1.5: use 0 to 1"),
    ({"random_erasing": np.nan}, "random_erasing is nan: use 0 to 1"),
  ],
)
def test_numbers_out_of_range_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)
