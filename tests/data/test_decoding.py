"""Whatever is in a file becomes upright uint8, or is told to be broken."""

import io
import struct

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from flax_resnet.data import jpeg as jpegs
from flax_resnet.data.decoding import decode, Picture
from flax_resnet.data.jpeg import ImageError


def photograph(height, width, seed=0):
  """Smooth colours with some noise: what JPEG is made for."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / 40
  waves = [np.sin(y * a + b) + np.cos(x * b + a) for a, b in rng.random((3, 2))]
  noise = rng.normal(0, 4, (height, width, 3))
  return (128 + 50 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def encode(picture, kind="PNG", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


RGB = photograph(40, 60)
GREY = RGB[..., 0]
PICTURE = Image.fromarray(RGB)


def test_png_is_returned_as_it_was():
  np.testing.assert_array_equal(decode(encode(PICTURE), 3), RGB)
  grey = decode(encode(Image.fromarray(GREY)), 1)
  np.testing.assert_array_equal(grey[..., 0], GREY)


def test_grey_becomes_rgb():
  pixels = decode(encode(Image.fromarray(GREY)), 3)
  np.testing.assert_array_equal(pixels, np.stack([GREY] * 3, -1))
  jpeg = decode(encode(Image.fromarray(GREY), "JPEG", quality=100), 3)
  assert np.abs(jpeg.astype(int) - pixels).max() <= 2


def test_16_bits_become_8():
  wide = Image.fromarray((GREY.astype(np.uint16) << 8) + 200)
  assert wide.mode == "I;16"
  for kind in ("PNG", "TIFF"):
    pixels = decode(encode(wide, kind), 3)
    np.testing.assert_array_equal(pixels, np.stack([GREY] * 3, -1))


def test_a_palette_and_alpha_become_rgb():
  few = PICTURE.quantize(16)
  np.testing.assert_array_equal(decode(encode(few), 3), few.convert("RGB"))
  see_through = encode(few, transparency=bytes(range(16)))
  np.testing.assert_array_equal(decode(see_through, 3), few.convert("RGB"))
  PICTURE.putalpha(Image.fromarray(GREY))
  np.testing.assert_array_equal(decode(encode(PICTURE), 3), RGB)


def test_cmyk_becomes_rgb():
  inks = Image.fromarray(RGB).convert("CMYK")
  pixels = decode(encode(inks, "JPEG", quality=98), 3).astype(int)
  assert np.abs(pixels - RGB).mean() < 4


# What EXIF says must be done to the pixels: Exif 2.32, tag 274.
TURNS = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_what_exif_turns_becomes_upright(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  plain = encode(Image.fromarray(RGB), "JPEG")
  turned = encode(Image.fromarray(RGB), "JPEG", exif=exif)
  wanted = TURNS[orientation](decode(plain, 3))
  np.testing.assert_array_equal(decode(turned, 3), wanted)
  picture = Picture(turned, 3)
  assert (picture.height, picture.width) == wanted.shape[:2]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_gives(subsampling, progressive):
  options = {"subsampling": subsampling, "progressive": progressive}
  jpeg = encode(Image.fromarray(photograph(123, 77)), "JPEG", **options)
  with Image.open(io.BytesIO(jpeg)) as picture:
    wanted = np.asarray(picture).astype(int)
  assert np.abs(decode(jpeg, 3) - wanted).max() <= 1


SUBSAMPLINGS = ["444", "422", "420", "440", "411"]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
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

  monkeypatch.setattr(jpegs.simplejpeg, "decode_jpeg", spy)
  picture = Picture(jpeg, 3)
  height, side = len(whole), 72 // factor
  for bottom in range(side, height + 1):
    top = bottom - side
    found = picture.resized(top * factor, 0, 72, 72, size=side)
    np.testing.assert_array_equal(found, whole[top:bottom, :side])
  assert rows == [min(n + 1, height) for n in range(side, height + 1)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_part_of_a_progressive_jpeg_is_that_of_the_whole(subsampling):
  options = {"subsampling": subsampling, "progressive": True}
  jpeg = encode(Image.fromarray(photograph(123, 77)), "JPEG", **options)
  found = Picture(jpeg, 3).resized(20, 0, 70, 70, size=70)
  np.testing.assert_array_equal(found, decode(jpeg, 3)[20:90, :70])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 11])
def test_a_large_part_is_shrunk_to_the_mean_of_its_pixels(kind, factor):
  pixels = photograph(200, 240, seed=factor)
  picture = Picture(encode(Image.fromarray(pixels), kind, quality=95), 3)
  size = 160 // factor
  found = picture.resized(17, 40, 160, 160, size)
  part = Image.fromarray(pixels[17:177, 40:200])
  wanted = np.asarray(part.resize((size, size), Image.Resampling.BOX))
  assert found.shape == (size, size, 3)
  difference = np.abs(found.astype(float) - wanted)
  assert difference.mean() < 4


def large(kind):
  """A file of 10^10 pixels; of a JPEG and a PNG by its header alone."""
  jpeg = bytearray(encode(Image.fromarray(RGB), "JPEG"))
  at = jpeg.index(b"\xff\xc0")
  struct.pack_into(">HH", jpeg, at + 5, 65000, 65000)
  if kind == "JPEG":
    return bytes(jpeg)
  file = io.BytesIO()
  # 1 bit a pixel, all zero: some kilobytes.
  Image.new("1", (20000, 20000)).save(file, "PNG")
  return file.getvalue()


JPEG = encode(Image.fromarray(RGB), "JPEG")
BROKEN = {
  "nothing": (b"", "0 bytes that start with b'' are not an image"),
  "text": (b"not an im", "9 bytes that start with b'not an i.* not an image"),
  "half a JPEG": (JPEG[: len(JPEG) // 2], "broken: (?i:.*truncated)"),
  "a JPEG without its end": (JPEG[:-2] + b"..", "broken: (?i:.*truncated)"),
  "a JPEG's header": (JPEG[:300], "broken|not an image"),
  "half a PNG": (
    encode(Image.fromarray(RGB))[:2000],
    "broken: (?i:.*truncated)",
  ),
  "a JPEG bomb": (large("JPEG"), "65000 x 65000 pixels, more than 89,478,485"),
  "a PNG bomb": (large("PNG"), "decompression bomb"),
  "floating point": (
    encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "floating-point pixels",
  ),
}


@pytest.mark.parametrize("look", ["whole", "part"])
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told(what, look):
  data, message = BROKEN[what]
  with pytest.raises(ImageError, match=message):
    if look == "whole":
      decode(data, 3)
    else:
      Picture(data, 3).resized(0, 0, 30, 30, 20)


def test_threads_do_not_share_their_memory():
  from concurrent import futures

  pictures = [
    Picture(encode(Image.fromarray(photograph(90, 90, i)), "JPEG"), 3)
    for i in range(8)
  ]
  crop = lambda picture: picture.resized(1, 2, 80, 80, 64)
  alone = [crop(picture) for picture in pictures]
  with futures.ThreadPoolExecutor(4) as pool:
    for _ in range(20):
      for one, other in zip(alone, pool.map(crop, pictures), strict=True):
        np.testing.assert_array_equal(one, other)
