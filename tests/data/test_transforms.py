import importlib.util
import io

import numpy as np
from PIL import Image
import pytest

from flax_resnet.data import transforms
from flax_resnet.data.decoding import decode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def encode(pixels, kind="PNG"):
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze()).save(file, kind)
  return file.getvalue()


def test_decode_returns_the_pixels():
  np.testing.assert_array_equal(decode(encode(PIXELS), 3), PIXELS)
  grey = PIXELS[..., :1]
  np.testing.assert_array_equal(decode(encode(grey), 1), grey)
  assert decode(encode(grey), 3).shape == (40, 60, 3)


def test_decode_names_what_is_not_an_image():
  with pytest.raises(ValueError, match="9 bytes that start with b'not an i"):
    decode(b"not an im", 3)


def test_an_image_of_the_right_size_is_left_alone():
  square = PIXELS[:, :40]
  crop = transforms.center_crop(3, 40)
  np.testing.assert_array_equal(crop(square, RNG), square)


@pytest.mark.parametrize(
  ("height", "width", "resized", "crop"),
  [
    (40, 60, (48, 32), (10, 2)),  # Of 32 x 48 the central 28 x 28.
    (60, 40, (32, 48), (2, 10)),
    (37, 100, (86, 32), (29, 2)),
    (41, 36, (32, 36), (2, 4)),
    (91, 90, (32, 32), (2, 2)),
  ],
)
def test_center_crop_is_resize_and_crop(height, width, resized, crop):
  """The sizes and corners are those that torchvision 0.28 computes."""
  image = RNG.integers(0, 256, (height, width, 3), np.uint8)
  ours = transforms.center_crop(3, 28, 28 / 32)(image, RNG).astype(int)
  whole = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
  left, top = crop
  theirs = np.asarray(whole)[top : top + 28, left : left + 28].astype(int)
  assert ours.shape == (28, 28, 3)
  assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("size", [(256, 224), (232, 224), (35, 31)])
def test_center_crop_has_the_pixels_of_torchvision(size):
  """From the same JPEG, to one grey level: Resize and CenterCrop by Pillow."""
  pytest.importorskip("torch")
  if not importlib.util.find_spec("torchvision"):
    pytest.skip("torchvision is not installed")
  from tests.weights import torch_models

  theirs = torch_models.load_torchvision().transforms
  short, crop = size
  pipeline = theirs.Compose([theirs.Resize(short), theirs.CenterCrop(crop)])
  ours = transforms.center_crop(3, crop, crop / short)
  for height, width in RNG.integers(crop, 500, (12, 2)):
    small = RNG.integers(0, 256, (9, 9, 3), np.uint8)
    photograph = Image.fromarray(small).resize((width, height))
    jpeg = encode(np.asarray(photograph), "JPEG")
    with Image.open(io.BytesIO(jpeg)) as picture:
      wanted = np.asarray(pipeline(picture.convert("RGB"))).astype(int)
    assert np.abs(ours(jpeg, RNG) - wanted).max() <= 1


def test_random_resized_crop_draws_within_its_ranges():
  # Coordinates as colours: the corners of a crop can be read off it.
  y, x = np.mgrid[:250, :200]
  chart = np.stack([y, x, 0 * x], -1).astype(np.uint8)
  crop = transforms.random_resized_crop(3, 50)
  areas, ratios = [], []
  for _ in range(200):
    pixels = crop(chart, RNG).astype(float)
    assert pixels.shape == (50, 50, 3)
    height = (pixels[-1, 0, 0] - pixels[0, 0, 0]) * 50 / 49
    width = (pixels[0, -1, 1] - pixels[0, 0, 1]) * 50 / 49
    areas.append(height * width / chart[..., 0].size)
    ratios.append(width / height)
  assert 0.06 < min(areas) < 0.15
  assert 0.8 < max(areas) < 1.02
  assert 0.7 < min(ratios) < 0.85
  assert 1.2 < max(ratios) < 1.4


def test_random_resized_crop_is_a_function_of_its_generator():
  crop = transforms.random_resized_crop(3, 16)
  one = crop(PIXELS, np.random.default_rng(5))
  same = crop(PIXELS, np.random.default_rng(5))
  other = crop(PIXELS, np.random.default_rng(6))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


def test_a_narrow_image_falls_back_to_its_centre():
  strip = np.repeat(PIXELS[:1], 2, 0)
  assert transforms.random_resized_crop(3, 8)(strip, RNG).shape == (8, 8, 3)
