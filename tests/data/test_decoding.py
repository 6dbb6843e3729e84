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
from tests.data.images import encode, photograph, tiff

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


LEVELS = np.arange(256).reshape(16, 16)
ONE = struct.unpack("<I", struct.pack("<f", 1))[0]


def declares_one(file):
  """Returns a TIFF with t341=ONE, SMaxSampleValue, of the type FLOAT."""
  old, new = (struct.pack("<HHI", 341, kind, 1) for kind in (4, 11))
  assert old in file
  return file.replace(old, new)


DECLARED = {
  "TIFF, 16 bits": tiff((LEVELS * 257).astype(np.uint16)),
  "TIFF, 12 bits": tiff((LEVELS * 16 + LEVELS // 16).astype(np.uint16), 12),
  "TIFF, 12 of 16 bits": tiff((LEVELS * 16).astype(np.uint16), t281=4080),
  "TIFF, int16": tiff((LEVELS * 100).astype(np.int16), t281=25500),
  "TIFF, int32": tiff(LEVELS.astype(np.int32), t281=255),
  "TIFF, uint32": tiff((LEVELS * 0x1010101).astype(np.uint32), t341=2**32 - 1),
  "TIFF, float": declares_one(
    tiff((LEVELS / 255).astype(np.float32), t341=ONE)
  ),
  "TIFF, 0 is white": tiff((65535 - LEVELS * 257).astype(np.uint16), t262=0),
  "PNG, 16 bits": encode((LEVELS * 257).astype(np.uint16)),
  "PGM of 1020": b"P5 16 16 1020\n" + (LEVELS * 4).astype(">u2").tobytes(),
  "PGM of 65535": b"P5 16 16 65535\n" + (LEVELS * 257).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("image", DECLARED.values(), ids=DECLARED)
def test_the_declared_maximum_is_white(image):
  np.testing.assert_array_equal(decode(image, 1)[..., 0], LEVELS)
  np.testing.assert_array_equal(decode(image, 3)[..., 1], LEVELS)


UNDECLARED = {
  "int32": tiff(LEVELS.astype(np.int32)),
  "uint32": tiff(LEVELS.astype(np.uint32)),
  "int16": tiff(LEVELS.astype(np.int16)),
  "float": tiff(LEVELS.astype(np.float32)),
  "half": tiff(LEVELS.astype(np.float16)),
  "double": tiff(LEVELS.astype(np.float64)),
  "PFM": b"Pf\n16 16\n-1.0\n" + LEVELS.astype("<f4").tobytes(),
  "too large": tiff(LEVELS.astype(np.int32), t281=254),
  "negative": tiff((LEVELS - 1).astype(np.int16), t281=255),
  "NaN": declares_one(tiff(np.full((9, 9), np.nan, np.float32), t341=ONE)),
  "colors": tiff(np.zeros((9, 9, 3), np.uint16), t281=4095),
}


@pytest.mark.parametrize("image", UNDECLARED.values(), ids=UNDECLARED)
def test_what_would_be_black_or_clipped_is_refused(image):
  with pytest.raises(ImageError, match="convert it to 8 bits$"):
    decode(image, 3)


def test_colors_of_16_bits_are_their_upper_bytes():
  wide = np.stack([LEVELS] * 3, -1).astype(np.uint16) << 8
  np.testing.assert_array_equal(decode(tiff(wide + 77), 3), wide >> 8)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(20, 160), (160, 20)])
def test_a_part_is_shrunk_by_what_leaves_both_of_its_sides(kind, size):
  """So stripes along the side that is eight times shorter stay as they are."""
  stripes = np.where(np.arange(200) % 6 < 3, 40, 215).astype(np.uint8)
  pixels = np.broadcast_to(stripes, (200, 200))
  if size[0] > size[1]:
    pixels = pixels.T
  pixels = np.repeat(pixels[..., None], 3, -1)
  image = LazyImage(encode(pixels, kind, quality=95), 3)
  found = image.resized_crop(16, 24, 160, 160, size).astype(int)
  rows, columns = (slice(16 + 160 // n // 2, 176, 160 // n) for n in size)
  columns = slice(columns.start + 8, columns.stop + 8, columns.step)
  assert found.shape == (*size, 3)
  tolerance = 12 if kind == "JPEG" else 0
  assert np.abs(found - pixels[rows, columns]).max() <= tolerance


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


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_newer_formats(kind):
  if kind == "HEIF":
    pytest.importorskip("pillow_heif")
  pixels = decode(encode(RGB, kind, quality=95), 3)
  assert np.abs(pixels.astype(int) - RGB).mean() < 4
  if kind == "AVIF":  # HEIF's own rotation counts, which libheif undoes.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(RGB, kind, quality=95, exif=exif), 3)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_more_pixels_are_allowed_by_number(kind, monkeypatch):
  """More than twice Pillow's bound, at which it raises an error of its own."""
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
  image = encode(Image.new("L", (20_000, 10_000), 7), kind)
  for limit in (decoding.MAX_PIXELS, 199_999_999):
    with pytest.raises(ImageError, match=f"more than max_pixels, {limit:,}"):
      LazyImage(image, 1, limit)
  found = LazyImage(image, 1, 200_000_000).resized_crop(0, 0, 9000, 9000, 8)
  np.testing.assert_array_equal(found, np.full((8, 8, 1), 7, np.uint8))


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
