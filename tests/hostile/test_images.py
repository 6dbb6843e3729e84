"""Damaged images on their way into predict, and out of an image folder."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from flax_resnet.data import crops
from flax_resnet.data.decoding import decode
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.pipeline import RecordReader
from flax_resnet.data.sources import open_npz
from flax_resnet.errors import ImageError, reported_as
from tests.hostile.mutations import damaged
from tests.hostile.survival import COUNTS, survive


def save(kind, mode="RGB", **options):
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  picture = small.resize((64, 48)).convert(mode)
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def exif(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


@functools.cache
def good():
  """Returns a good file of every kind that is read."""
  return [
    save("JPEG"),
    save("JPEG", progressive=True),
    save("JPEG", "L"),
    save("JPEG", "CMYK"),
    save("JPEG", exif=exif(6)),
    save("JPEG", icc_profile=b"x" * 300, comment=b"hello"),
    save("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    save("PNG"),
    save("PNG", "P"),
    save("PNG", "RGBA", exif=exif(3)),
    save("PNG", "I;16"),
    save("PNG", "L", transparency=3),
    save("PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
    save("WEBP"),
    save("WEBP", lossless=True),
    save("WEBP", "RGBA", exif=exif(5)),
    save("GIF", "P", transparency=1),
    save("GIF", "P", save_all=True, append_images=[Image.new("P", (64, 48))]),
    save("BMP"),
    save("BMP", "1"),
    save("TIFF"),
    save("TIFF", compression="tiff_lzw"),
    save("TIFF", compression="jpeg"),
    save("TIFF", "I;16", compression="tiff_adobe_deflate"),
    save("TIFF", "1", compression="group4"),
    save("TIFF", "I", tiffinfo={281: 255}),
    save("AVIF"),
    save("AVIF", "RGBA", exif=exif(5)),
    save("PPM"),
    save("PPM", "L"),
  ]


WAYS = {
  "evaluation": lambda channels: crops.center_crop(channels, 32, 0.875),
  "training": lambda channels: crops.random_resized_crop(channels, 32),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_files_are_good_before_they_are_damaged(way):
  for image in good():
    for channels in (1, 3):
      pixels = WAYS[way](channels)(image, np.random.default_rng(0))
      assert pixels.shape == (32, 32, channels)


BOMB = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
FOREIGN = {
  "a program in PostScript": (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(owned) (w) file closefile showpage\n%%EOF\n"
  ),
  "an icon": save("ICO"),
  "a picture of another kind": save("SGI"),
  "a decompression bomb": (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    + BOMB
    + struct.pack(">I", zlib.crc32(b"IHDR" + BOMB))
  ),
}


@pytest.mark.parametrize("image", FOREIGN.values(), ids=FOREIGN)
def test_other_formats_are_refused(image):
  with pytest.raises(ImageError, match="are not an image|fills the memory"):
    decode(image, 3)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_damaged_images(tmp_path, count, way):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x.jpg").write_bytes(good()[0])
  file = tmp_path / "a" / "x.jpg"
  source = FolderSource(tmp_path, "train")
  readers = [
    RecordReader(source, WAYS[way](channels), (32, 32, channels))
    for channels in (1, 3)
  ]

  def attempt(rng):
    file.write_bytes(damaged(rng.choice(good()), rng, good()))
    reader = rng.choice(readers)
    numbers = np.random.default_rng(rng.getrandbits(32))

    def call():
      with reported_as("config.data"):
        reader.read(np.array([0]), [numbers])

    return call

  ends = survive(tmp_path, count, attempt)
  assert min(ends.values()) > count // 8


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_arrays(tmp_path, count):
  def packed(save_arrays, **more):
    file = io.BytesIO()
    images = np.zeros((6, 4, 4, 3), np.uint8)
    labels = np.arange(6) % 2
    save_arrays(file, train_images=images, train_labels=labels, **more)
    return file.getvalue()

  files = [
    packed(np.savez),
    packed(np.savez_compressed, class_names=np.array(["a", "b"])),
    packed(np.savez, class_names=np.array([{}, print], object)),
  ]
  path = tmp_path / "x.npz"

  def attempt(rng):
    path.write_bytes(damaged(rng.choice(files), rng, files))

    def call():
      with reported_as("config.data"):
        source = open_npz(path, "train")
        assert source[0]["image"].ndim == 3

    return call

  ends = survive(tmp_path, count, attempt)
  assert min(ends.values()) > count // 20
