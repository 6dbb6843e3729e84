import numpy as np
from PIL import Image
import pytest

from flax_resnet.data import crops

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def test_an_image_of_the_right_size_is_left_alone():
  square = PIXELS[:, :40]
  crop = crops.center_crop(3, 40)
  np.testing.assert_array_equal(crop(square, RNG), square)


@pytest.mark.parametrize(
  ("height", "width", "resized", "corner"),
  [
    (40, 60, (48, 32), (10, 2)),  # Of 32 x 48 the central 28 x 28.
    (60, 40, (32, 48), (2, 10)),
    (37, 100, (86, 32), (29, 2)),
    (41, 36, (32, 36), (2, 4)),
    (91, 90, (32, 32), (2, 2)),
  ],
)
def test_center_crop_is_resize_and_crop(height, width, resized, corner):
  """The sizes and corners are those that torchvision 0.28 computes."""
  image = RNG.integers(0, 256, (height, width, 3), np.uint8)
  ours = crops.center_crop(3, 28, 28 / 32)(image, RNG).astype(int)
  whole = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
  left, top = corner
  theirs = np.asarray(whole)[top : top + 28, left : left + 28].astype(int)
  assert ours.shape == (28, 28, 3)
  assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
  ("height", "width", "resized", "corner"),
  [(341, 215, (106, 168), (5, 36)), (213, 133, (106, 169), (5, 36))],
)
def test_a_center_crop_of_the_whole_is_exact(
  height, width, resized, corner, interpolation
):
  image = RNG.integers(0, 256, (height, width, 3), np.uint8)
  crop = crops.center_crop(3, 96, 96 / 106, interpolation, resize_first=True)
  method = Image.Resampling[interpolation.upper()]
  whole = np.asarray(Image.fromarray(image).resize(resized, method))
  left, top = corner
  expected = whole[top : top + 96, left : left + 96]
  np.testing.assert_array_equal(crop(image, RNG), expected)


def test_of_a_narrow_strip_the_middle_alone_is_resized():
  """All of it, as high, would have 10 GB."""
  strip = np.zeros((1, 300_000, 3), np.uint8)
  crop = crops.center_crop(3, 100, resize_first=True)
  assert crop(strip, RNG).shape == (100, 100, 3)


def test_random_resized_crop_draws_within_its_ranges():
  # Coordinates as colors: the corners of a crop can be read off it.
  y, x = np.mgrid[:250, :200]
  chart = np.stack([y, x, 0 * x], -1).astype(np.uint8)
  crop, rng = crops.random_resized_crop(3, 50), np.random.default_rng(0)
  areas, ratios, corners = [], [], []
  for _ in range(200):
    pixels = crop(chart, rng).astype(float)
    assert pixels.shape == (50, 50, 3)
    height = (pixels[-1, 0, 0] - pixels[0, 0, 0]) * 50 / 49
    width = (pixels[0, -1, 1] - pixels[0, 0, 1]) * 50 / 49
    areas.append(height * width / chart[..., 0].size)
    ratios.append(width / height)
    margins = np.array([250 - height, 200 - width])
    if margins.min() > 10:
      corners.append(pixels[0, 0, :2] / margins)
  assert 0.06 < min(areas) < 0.15
  assert 0.8 < max(areas) < 1.02
  assert 0.7 < min(ratios) < 0.85
  assert 1.2 < max(ratios) < 1.4
  low, middle, high = np.quantile(corners, (0.1, 0.5, 0.9), 0)
  assert (low < 0.2).all()
  assert (abs(middle - 0.5) < 0.15).all()
  assert (high > 0.8).all()


def test_random_resized_crop_is_a_function_of_its_generator():
  crop = crops.random_resized_crop(3, 16)
  one, same, other = (
    crop(PIXELS, np.random.default_rng(seed)) for seed in (5, 5, 6)
  )
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


def test_a_narrow_image_falls_back_to_its_center():
  box = crops.random_box(2, 60, (0.08, 1.0), (3 / 4, 4 / 3), RNG)
  assert box == (0, 28, 2, 3)
  strip = np.repeat(PIXELS[:1], 2, 0)
  assert crops.random_resized_crop(3, 8)(strip, RNG).shape == (8, 8, 3)
