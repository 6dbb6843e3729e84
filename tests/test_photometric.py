"""Colors and blur on the device, against their formulas and torchvision."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import photometric

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).random((6, 9, 11, 3), np.float32)
IMAGES[0, 0] = IMAGES[0, 0, :, :1]  # Gray pixels have no hue,
IMAGES[1, 0] = 0  # and black ones no saturation.
GRAY = IMAGES[..., :1]
FACTORS = np.array([0.0, 0.4, 0.9, 1.0, 1.3, 1.8], np.float32)
SHIFTS = np.array([-0.5, -0.2, 0.0, 0.1, 0.3, 0.5], np.float32)


def test_hue_is_turned_as_by_python():
  found = photometric.adjust_hue(jnp.asarray(IMAGES), jnp.asarray(SHIFTS))
  for image, shift, turned in zip(
    IMAGES, SHIFTS, np.asarray(found), strict=True
  ):
    pixels = image.reshape(-1, 3)
    for pixel, wanted in zip(pixels, turned.reshape(-1, 3), strict=True):
      hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
      expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
      np.testing.assert_allclose(wanted, expected, atol=1e-5)


def test_a_blur_is_a_sum_of_weighted_neighbors():
  found = photometric.gaussian_blur(
    jnp.asarray(IMAGES), jnp.full(6, 0.8), kernel_size=5
  )
  weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
  weights = np.outer(weights, weights) / weights.sum() ** 2
  padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
  wanted = sum(
    weights[i, j] * padded[:, i : i + 9, j : j + 11]
    for i in range(5)
    for j in range(5)
  )
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_share_of_the_images_is_blurred():
  images = jnp.asarray(np.repeat(IMAGES[:1], 400, 0))
  found = photometric.random_blur(KEY, images, 0.25, (0.5, 2.0))
  changed = np.asarray((found != images).any((1, 2, 3)))
  assert changed.mean() == pytest.approx(0.25, abs=0.06)
  assert len(np.unique(found[changed][:, 0, 0, 0])) == changed.sum()


def test_amounts_are_drawn_for_each_image_from_their_range():
  images = jnp.full((500, 1, 1, 3), 0.25)
  found = np.asarray(photometric.jitter(KEY, images, brightness=0.6))[
    :, 0, 0, 0
  ]
  assert 0.1 <= found.min() < 0.105
  assert 0.395 < found.max() <= 0.4
  assert found.mean() == pytest.approx(0.25, abs=0.015)
  # A factor is never below 0.
  found = photometric.jitter(KEY, images, brightness=3.0)
  assert found.min() >= 0


def test_the_order_is_random_and_every_operation_is_done():
  """By brightness and saturation, which do not commute where they clip."""
  images = jnp.asarray([[[[0.9, 0.5, 0.1]]]])
  amounts = {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.5}
  jitter = jax.jit(lambda key: photometric.jitter(key, images, **amounts))
  orders = set()
  for seed in range(40):
    key = jax.random.key(seed)
    order_key, *keys = jax.random.split(key, 5)
    drawn = [
      jax.random.uniform(k, (1,), minval=low, maxval=high)
      for k, (low, high) in zip(
        keys, [(1 - 0.9, 1.9)] * 3 + [(-0.5, 0.5)], strict=True
      )
    ]
    order = tuple(jax.random.permutation(order_key, 4).tolist())
    orders.add(order)
    wanted = images
    operations = (
      photometric.adjust_brightness,
      photometric.adjust_contrast,
      photometric.adjust_saturation,
      photometric.adjust_hue,
    )
    for number in order:
      wanted = operations[number](wanted, drawn[number])
    np.testing.assert_allclose(jitter(key), wanted, atol=1e-5)
  assert len(orders) > 12


@pytest.mark.deep
@pytest.mark.parametrize("images", [IMAGES, GRAY], ids=["rgb", "gray"])
@pytest.mark.parametrize(
  ("name", "amounts"),
  [
    ("adjust_brightness", FACTORS),
    ("adjust_contrast", FACTORS),
    ("adjust_saturation", FACTORS),
    ("adjust_hue", SHIFTS),
    ("gaussian_blur", FACTORS + 0.1),
  ],
)
def test_each_operation_is_that_of_torchvision(name, amounts, images):
  torch = pytest.importorskip("torch")
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  functional = pytest.importorskip("torchvision.transforms.functional")
  ours, theirs = (getattr(m, name) for m in (photometric, functional))
  if name == "gaussian_blur":
    found = ours(jnp.asarray(images), jnp.asarray(amounts), 7)
  else:
    found = ours(jnp.asarray(images), jnp.asarray(amounts))
  for image, amount, result in zip(images, amounts, found, strict=True):
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    options = (
      [7, [float(amount)]] if name == "gaussian_blur" else [float(amount)]
    )
    wanted = theirs(tensor, *options).permute(1, 2, 0)
    np.testing.assert_allclose(result, wanted, atol=2e-6)
