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


@pytest.mark.parametrize("resize_first", [False, True])
@pytest.mark.parametrize(
  ("height", "width", "resized", "corner"),
  [
    (45, 61, (32, 24), (2, 2)),  # It must cover 23 x 32: 23.5 and 32.9.
    (45, 101, (52, 23), (12, 2)),  # As high as it must be, and wider.
    (61, 45, (32, 43), (2, 12)),
    (23, 32, (32, 23), (2, 2)),
    (7, 90, (296, 23), (134, 2)),
  ],
)
def test_a_center_crop_need_not_be_a_square(
  height, width, resized, corner, resize_first
):
  """The sizes and corners are those that timm 1.0.31 computes."""
  image = RNG.integers(0, 256, (height, width, 3), np.uint8)
  crop = crops.center_crop(3, (20, 28), 0.85, resize_first=resize_first)
  whole = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
  left, top = corner
  theirs = np.asarray(whole)[top : top + 20, left : left + 28].astype(int)
  ours = crop(image, RNG).astype(int)
  assert ours.shape == (20, 28, 3)
  assert np.abs(ours - theirs).max() <= (0 if resize_first else 1)


def test_a_pair_of_equal_sides_is_a_square():
  """Which is rounded as torchvision does: to 30 of 28 and 0.93, not to 30.1."""
  for fraction in (0.875, 0.95, 1.0):
    square, pair = (
      crops.center_crop(3, size, fraction)(PIXELS, RNG)
      for size in (28, (28, 28))
    )
    np.testing.assert_array_equal(square, pair)


@pytest.mark.deep
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [(96, 128), (128, 96), (50, 31), (64, 64)])
def test_center_crops_are_those_of_timm(size, fraction, interpolation):
  """Of pictures with odd sides, narrow ones too."""
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  timm = pytest.importorskip("timm.data")
  theirs = timm.transforms_factory.transforms_imagenet_eval(
    size, fraction, interpolation=interpolation, use_prefetcher=True
  )
  # What a square of a run is rounded to is torchvision's, and not timm's.
  ours = fraction
  if size[0] == size[1]:
    ours = size[0] / int(size[0] / fraction)
  options = {"interpolation": interpolation}
  exact = crops.center_crop(3, size, ours, **options, resize_first=True)
  near = crops.center_crop(3, size, ours, **options)
  rng = np.random.default_rng(1)
  for height, width in 2 * rng.integers(15, 200, (40, 2)) + 1:
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    wanted = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(exact(image, rng), wanted)
    # Noise, which Pillow rounds and cuts off between rows and columns.
    assert np.abs(near(image, rng).astype(int) - wanted).mean() < 0.5


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


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (40, 40)])
def test_the_part_that_is_cut_out_does_not_depend_on_the_size(size):
  """As in torchvision: it has a ratio of 3/4 to 4/3, and is stretched."""
  y, x = np.mgrid[:250, :200]
  chart = np.stack([y, x, 0 * x], -1).astype(np.uint8)
  crop, rows, columns = crops.random_resized_crop(3, size), *size
  for seed in range(20):
    rng = np.random.default_rng(seed)
    box = crops.random_box(250, 200, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    top, left, height, width = box
    pixels = crop(chart, np.random.default_rng(seed)).astype(float)
    assert pixels.shape == (rows, columns, 3)
    # The middle of each pixel of the result, of height / rows pixels.
    y = top - 0.5 + height * (np.arange(rows) + 0.5) / rows
    x = left - 0.5 + width * (np.arange(columns) + 0.5) / columns
    edges = np.s_[1:-1, 1:-1]  # There is nothing beyond to mix with.
    assert np.abs(pixels[..., 0] - y[:, None])[edges].max() < 1.5
    assert np.abs(pixels[..., 1] - x[None])[edges].max() < 1.5


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
