"""Whatever is in a file becomes upright uint8, or an ImageError."""

from concurrent import futures
import io
import struct

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from flax_resnet.data import decoding
from flax_resnet.data.decoding import decode, LazyImage
from flax_resnet.errors import ImageError
from tests.data.images import encode, photograph

RGB = photograph(40, 60)
GRAY = RGB[..., 0]


def test_png_is_returned_as_it_was():
  np.testing.assert_array_equal(decode(encode(RGB), 3), RGB)
  np.testing.assert_array_equal(decode(encode(GRAY), 1)[..., 0], GRAY)


def test_gray_becomes_rgb():
  pixels = decode(encode(GRAY), 3)
  np.testing.assert_array_equal(pixels, np.stack([GRAY] * 3, -1))
  jpeg = decode(encode(GRAY, "JPEG", quality=100), 3)
  assert np.abs(jpeg.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8(kind):
  wide = Image.fromarray((GRAY.astype(np.uint16) << 8) + 200)
  assert wide.mode == "I;16"
  pixels = decode(encode(wide, kind), 3)
  np.testing.assert_array_equal(pixels, np.stack([GRAY] * 3, -1))


def test_a_palette_and_alpha_become_rgb():
  image = Image.fromarray(RGB)
  few = image.quantize(16)
  np.testing.assert_array_equal(decode(encode(few), 3), few.convert("RGB"))
  transparent = encode(few, transparency=bytes(range(16)))
  np.testing.assert_array_equal(decode(transparent, 3), few.convert("RGB"))
  image.putalpha(Image.fromarray(GRAY))
  np.testing.assert_array_equal(decode(encode(image), 3), RGB)


def test_cmyk_becomes_rgb():
  inks = Image.fromarray(RGB).convert("CMYK")
  pixels = decode(encode(inks, "JPEG", quality=98), 3).astype(int)
  assert np.abs(pixels - RGB).mean() < 4


# What undoes EXIF's orientation: Exif 2.32, tag 274.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_what_exif_rotates_becomes_upright(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  rotated = encode(RGB, "JPEG", exif=exif)
  expected = UPRIGHT[orientation](decode(encode(RGB, "JPEG"), 3))
  np.testing.assert_array_equal(decode(rotated, 3), expected)
  image = LazyImage(rotated, 3)
  assert (image.height, image.width) == expected.shape[:2]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_gives(subsampling, progressive):
  options = {"subsampling": subsampling, "progressive": progressive}
  jpeg = encode(photograph(123, 77), "JPEG", **options)
  with Image.open(io.BytesIO(jpeg)) as image:
    expected = np.asarray(image).astype(int)
  assert np.abs(decode(jpeg, 3) - expected).max() <= 1


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_part_is_that_of_the_whole(monkeypatch, subsampling, factor):
  """Decoding stops below the part, and no pixel of it tells."""
  noise = np.random.default_rng(0).integers(0, 256, (123, 77, 3), np.uint8)
  jpeg = simplejpeg.encode_jpeg(noise, 95, colorsubsampling=subsampling)
  shrunk = {"min_factor": factor, "min_height": 1, "min_width": 1}
  whole = simplejpeg.decode_jpeg(jpeg, fastdct=True, **shrunk)
  rows = []
  real = simplejpeg.decode_jpeg

  def spy(*args, **kwargs):
    pixels = real(*args, **kwargs)
    rows.append(len(pixels))
    return pixels

  monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", spy)
  image = LazyImage(jpeg, 3)
  height, side = len(whole), 72 // factor
  for bottom in range(side, height + 1):
    top = bottom - side
    found = image.resized_crop(top * factor, 0, 72, 72, size=side)
    np.testing.assert_array_equal(found, whole[top:bottom, :side])
  assert rows == [min(n + 1, height) for n in range(side, height + 1)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_part_of_a_progressive_jpeg_is_that_of_the_whole(subsampling):
  options = {"subsampling": subsampling, "progressive": True}
  jpeg = encode(photograph(123, 77), "JPEG", **options)
  found = LazyImage(jpeg, 3).resized_crop(20, 0, 70, 70, size=70)
  np.testing.assert_array_equal(found, decode(jpeg, 3)[20:90, :70])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 11])
def test_a_large_part_is_shrunk_to_the_mean_of_its_pixels(kind, factor):
  pixels = photograph(200, 240, seed=factor)
  image = LazyImage(encode(pixels, kind, quality=95), 3)
  size = 160 // factor
  found = image.resized_crop(17, 40, 160, 160, size)
  part = Image.fromarray(pixels[17:177, 40:200])
  expected = np.asarray(part.resize((size, size), Image.Resampling.BOX))
  assert found.shape == (size, size, 3)
  assert np.abs(found.astype(float) - expected).mean() < 4


JPEG, PNG = encode(RGB, "JPEG"), encode(RGB)


def jpeg_bomb():
  """Returns a header that promises 65000 x 65000 pixels."""
  bomb = bytearray(JPEG)
  struct.pack_into(">HH", bomb, bomb.index(b"\xff\xc0") + 5, 65000, 65000)
  return bytes(bomb)


BROKEN = {
  "nothing": b"",
  "text": b"not an im",
  "half a JPEG": JPEG[: len(JPEG) // 2],
  "a JPEG without its end": JPEG[:-2] + b"..",
  "a JPEG's header": JPEG[:300],
  "half a PNG": PNG[: len(PNG) // 2],
  "a JPEG bomb": jpeg_bomb(),
  # 1 bit a pixel, all zero: some kilobytes.
  "a PNG bomb": encode(Image.new("1", (20000, 20000))),
  "floating point": encode(GRAY.astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("image", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_an_image_error(image):
  with pytest.raises(ImageError):
    decode(image, 3)
  with pytest.raises(ImageError):
    LazyImage(image, 3).resized_crop(0, 0, 30, 30, 20)


def test_threads_do_not_share_their_memory():
  images = [
    LazyImage(encode(photograph(90, 90, i), "JPEG"), 3) for i in range(8)
  ]
  crop = lambda image: image.resized_crop(1, 2, 80, 80, 64)
  alone = [crop(image) for image in images]
  with futures.ThreadPoolExecutor(4) as pool:
    for _ in range(20):
      for one, other in zip(alone, pool.map(crop, images), strict=True):
        np.testing.assert_array_equal(one, other)
