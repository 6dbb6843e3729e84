"""Image files: made-up photographs, and folders of single colors."""

import io
import pathlib
import re
import struct

import numpy as np
from PIL import Image

COUNTS = {"anemone": 10, "큰 튤립": 15, "wild rose": 5}


def encode(image: np.ndarray | Image.Image, kind="PNG", **options) -> bytes:
  """Returns the file of an image, or of uint8 [h, w] or [h, w, c]."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image.squeeze())
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def tiff(pixels: np.ndarray, bits: int | None = None, **tags: int) -> bytes:
  """Returns a little-endian TIFF of [h, w] or [h, w, 3], not compressed.

  Args:
    pixels: pixels; those of 12 bits are packed.
    bits: bits of a channel; None (default) for those of the dtype.
    **tags: values of more tags: t281 is MaxSampleValue.
  """
  height, width, channels = (*pixels.shape, 1)[:3]
  data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
  if bits == 12:
    pairs = pixels.reshape(-1, 2).astype(np.uint32)
    packed = pairs[:, 0] << 12 | pairs[:, 1]
    data = packed.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
  bits, kind = bits or 8 * pixels.itemsize, "uif".index(pixels.dtype.kind) + 1
  bits_at, data_at = 900, 906
  values = {
    **{256: width, 257: height, 259: 1, 262: 2 if channels == 3 else 1},
    **{273: data_at, 277: channels, 278: height, 279: len(data), 339: kind},
    **{int(name[1:]): value for name, value in tags.items()},
  }
  entries = [(tag, 4, 1, value) for tag, value in values.items()]
  # Three values do not fit into an entry.
  entries += [(258, 3, channels, bits if channels == 1 else bits_at)]
  head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
  for entry in sorted(entries):
    head += struct.pack("<HHII", *entry)
  return head.ljust(bits_at, b"\0") + struct.pack("<HHH", *[bits] * 3) + data


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Returns smooth colors with some noise: what JPEG is made for."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / 40
  waves = [np.sin(y * a + b) + np.cos(x * b + a) for a, b in rng.random((3, 2))]
  noise = rng.normal(0, 4, (height, width, 3))
  return (128 + 50 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def plain(color: tuple[int, int, int], kind: str = "JPEG") -> bytes:
  """Returns a small file of one color."""
  return encode(Image.new("RGB", (12, 10), color), kind, quality=95)


def damage(file: pathlib.Path, record: int) -> None:
  """Changes a bit of a record of `Shapes` in an array_record file."""
  content = bytearray(file.read_bytes())
  starts = [m.start() for m in re.finditer(b"IHDR", content)]
  content[starts[record]] ^= 1
  file.write_bytes(content)


def write_folder(
  folder: pathlib.Path, counts: dict[str, int], first: int = 0
) -> None:
  """Writes a folder a class; `number_and_class` reads an image's color."""
  for label, name in enumerate(sorted(counts)):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + counts[name]):
      path = folder / name / f"사진 {number:02}.jpg"
      path.write_bytes(plain((8 * number, 60 * label, 0)))


def write_split_folder(root: pathlib.Path) -> pathlib.Path:
  """Writes `COUNTS` images to train on and three a class to evaluate on."""
  write_folder(root / "train", COUNTS)
  write_folder(root / "val", dict.fromkeys(COUNTS, 3), first=20)
  return root


def number_and_class(batch) -> tuple[np.ndarray, np.ndarray]:
  """Returns the number and the class of the images that count."""
  colors = batch["image"][batch["mask"]].mean((1, 2))
  return np.round(colors[:, 0] / 8), np.round(colors[:, 1] / 60)
