"""From the bytes of an image file to uint8 pixels, no more of them than needed.

Most photographs are JPEGs, and decoding them is most of what the host does.
libjpeg-turbo (simplejpeg) decodes them at half, a quarter or an eighth of their
size where that is enough, and down to the last row that is asked for; Pillow
decodes everything else, and whatever libjpeg-turbo complains about.
"""

import dataclasses
import io
import struct
import threading

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
import simplejpeg

from flax_resnet.errors import ImageError
from flax_resnet.schema import height_and_width, ImageSize

try:
  import pillow_heif  # pyright: ignore[reportMissingImports] - an extra
except ImportError:
  pillow_heif = None
else:
  pillow_heif.register_heif_opener()

# What Pillow may take a file for. It knows many more, whose readers are little
# used; that of EPS starts Ghostscript, which runs the program in the file.
FORMATS = (
  *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"),
  *(("HEIF",) if pillow_heif else ()),
)
# Endings of the names of such files: ".jpg", ".jpeg", ".jfif", ...
ENDINGS = tuple(
  sorted(
    ending
    for ending, kind in Image.registered_extensions().items()
    if kind in FORMATS
  )
)

# By default, an image of more is taken for a decompression bomb: Pillow's own
# bound, a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485

# Rows that are decoded beyond those asked for: chroma of half the height is
# interpolated with the row below.
_MARGIN = 1

# Threads of the pipeline read whole records; more within one get in their way.
cv2.setNumThreads(1)


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """A JPEG that needs nothing but decoding.

  Attributes:
    data: content of the file.
    frame: offset of the marker of its frame, in bytes.
    height: height in pixels.
    width: width in pixels.
    sequential: whether it is written row by row, and complete.
  """

  data: bytes
  frame: int
  height: int
  width: int
  sequential: bool

  @classmethod
  def parse(cls, data: bytes) -> "Jpeg | None":
    """Returns what the header says; None if the file is for Pillow.

    Reads the segments up to the frame (ITU-T T.81, annex B).
    """
    start = 2
    while data.startswith(b"\xff", start) and start + 10 <= len(data):
      marker, length = struct.unpack_from(">BH", data, start + 1)
      exif = marker == 0xE1 and data.startswith(b"Exif", start + 4)
      if exif and _is_rotated(data):
        return None
      if marker in (0xC0, 0xC1, 0xC2):  # Baseline, extended, progressive.
        bits, height, width, components = struct.unpack_from(
          ">BHHB", data, start + 4
        )
        if bits != 8 or components not in (1, 3) or 0 in (height, width):
          return None
        sequential = marker != 0xC2 and data.endswith(b"\xff\xd9")
        return cls(data, start, height, width, sequential)
      start += 2 + length
    return None

  def decode(self) -> np.ndarray | None:
    """Returns uint8 [height, width, 3]; None if anything in the file is odd."""
    try:
      return simplejpeg.decode_jpeg(self.data)
    except ValueError:
      return None

  def decode_rows(self, rows: int, factor: int) -> np.ndarray:
    """Returns the pixels down to a row; the thread's next call replaces them.

    A decoder stops at the last row that the header promises.

    Args:
      rows: number of rows, of the whole size.
      factor: divisor of height and width: 1, 2, 4 or 8.
    """
    shortened = _scratch.array("file", len(self.data))
    shortened[:] = np.frombuffer(self.data, np.uint8)
    shortened[self.frame + 5 : self.frame + 7] = divmod(rows, 256)
    try:
      return simplejpeg.decode_jpeg(
        shortened,
        min_height=-(-rows // factor),
        min_width=-(-self.width // factor),
        min_factor=factor,
        buffer=_scratch.array("pixels", 3 * rows * self.width),
        fastdct=True,
        strict=False,  # There is data beyond the last row.
      )
    except ValueError as error:
      raise ImageError(f"the image is broken: {error}") from error


def _is_rotated(jpeg: bytes) -> bool:
  """Returns whether EXIF says that the pixels are not upright."""
  orientation = 0x0112
  try:
    image = Image.open(io.BytesIO(jpeg), formats=FORMATS)
    return image.getexif().get(orientation, 1) != 1
  except Exception:  # Whatever Pillow meets in a broken header: it may say so.
    return True


class _Scratch(threading.local):
  """Memory of a thread that is used again: fresh memory would cost a fifth."""

  def __init__(self):
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, use: str, size: int) -> np.ndarray:
    """Returns uint8 [size], not initialized, for one use at a time."""
    if use not in self._arrays or self._arrays[use].size < size:
      self._arrays[use] = np.empty(size, np.uint8)
    return self._arrays[use][:size]


_scratch = _Scratch()


class LazyImage:
  """An image that is decoded when, and as far as, its pixels are asked for.

  Attributes:
    height: height in pixels, upright.
    width: width in pixels, upright.

  Args:
    image: content of an image file, or uint8 [h, w, c].
    channels: 1 for gray, 3 for RGB.
    max_pixels: largest number of pixels; default `MAX_PIXELS`.

  Raises:
    ImageError: if the bytes are no image, or one of too many pixels.
  """

  def __init__(
    self,
    image: bytes | np.ndarray,
    channels: int,
    max_pixels: int = MAX_PIXELS,
  ):
    self._channels, self._max_pixels = channels, max_pixels
    self._jpeg = None
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
      # Pillow has one bound for the whole process: it is only ever raised.
      Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    if isinstance(image, np.ndarray):
      self._pixels = image
    elif channels == 3 and image.startswith(b"\xff\xd8"):
      self._jpeg = Jpeg.parse(image)
    if self._jpeg:
      self.height, self.width = self._jpeg.height, self._jpeg.width
      _check_size(self.height, self.width, max_pixels)
      return
    if not isinstance(image, np.ndarray):
      self._pixels = _decode_with_pillow(image, channels, max_pixels)
    self.height, self.width = self._pixels.shape[:2]

  def pixels(self) -> np.ndarray:
    """Returns uint8 [height, width, channels].

    Raises:
      ImageError: if the image is broken.
    """
    if self._jpeg is None:
      return self._pixels
    if (pixels := self._jpeg.decode()) is not None:
      return pixels
    # Pillow says whether the image is broken, or the file merely odd.
    return _decode_with_pillow(self._jpeg.data, 3, self._max_pixels)

  def resized_crop(
    self, top: int, left: int, height: int, width: int, size: ImageSize
  ) -> np.ndarray:
    """Returns a part of the image, resized to uint8 [h, w, channels].

    First the part is shrunk by the largest of 1, 2, 4 and 8 that leaves both
    its sides the pixels of `size`, each the mean of those it stands for
    (libjpeg does so in the frequency domain); the rest of the way is bilinear.

    Args:
      top: first row of the part.
      left: first column of the part.
      height: height of the part in pixels.
      width: width of the part in pixels.
      size: height and width of the result in pixels, one number or both.

    Raises:
      ImageError: if the image is broken.
    """
    rows_out, columns_out = height_and_width(size)
    fitting = max(1, min(height // rows_out, width // columns_out))
    factor = next(k for k in (8, 4, 2, 1) if k <= fitting)
    bottom, right = top + height, left + width
    if self._jpeg and self._jpeg.sequential:
      last_row = min(self.height, bottom + _MARGIN * factor)
      shrunk = self._jpeg.decode_rows(last_row, factor)
      rows = slice(round(top / factor), round(bottom / factor))
      columns = slice(round(left / factor), round(right / factor))
      part = shrunk[rows, columns]
    else:
      part = self.pixels()[top:bottom, left:right]
      if factor > 1:
        shape = (round(width / factor), round(height / factor))
        part = cv2.resize(part, shape, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(
      part, (columns_out, rows_out), interpolation=cv2.INTER_LINEAR
    )
    return resized.reshape(rows_out, columns_out, self._channels)


def decode(
  image: bytes | np.ndarray, channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
  """Returns uint8 [h, w, channels] of an encoded file; an array as it is.

  Gray, a palette, alpha (dropped, as torchvision's loader does) and CMYK become
  uint8 gray or RGB, and EXIF's rotation is undone. More than 8 bits are scaled
  by the largest value that the file declares, never by the one that it has.

  Args:
    image: content of an image file, or uint8 [h, w, c].
    channels: 1 for gray, 3 for RGB.
    max_pixels: largest number of pixels; default `MAX_PIXELS`.

  Raises:
    ImageError: if the bytes are no image, a broken one, one of more than
      `max_pixels`, or one whose values have no declared maximum.
  """
  return LazyImage(image, channels, max_pixels).pixels()


def format_and_mode(image: bytes | np.ndarray) -> str:
  """Returns the format and the mode that Pillow finds: "JPEG RGB", "PNG I;16".

  An array is "array" and its channels.

  Raises:
    ImageError: if the bytes are no image.
  """
  if isinstance(image, np.ndarray):
    return f"array of {image.shape[-1]}"
  try:
    with Image.open(io.BytesIO(image), formats=FORMATS) as file:
      return f"{file.format} {file.mode}"
  except Exception as error:  # Pillow's readers raise whatever they meet.
    raise ImageError(f"the image is broken: {error}") from error


def _decode_with_pillow(
  data: bytes, channels: int, max_pixels: int
) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(image.height, image.width, max_pixels)
      levels = _levels(image)
      pixels = _convert(ImageOps.exif_transpose(image), channels, levels)
  except UnidentifiedImageError as error:
    if data.startswith((b"II*\0", b"MM\0*")):
      raise ImageError(
        "the image is a TIFF of a kind that Pillow does not read: convert it "
        "to 8 bits"
      ) from error
    raise ImageError(
      f"{len(data)} bytes that start with {data[:8]!r} are not an image"
    ) from error
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # An error where warnings are.
  ) as error:
    raise ImageError(
      _too_large("more pixels than it may", max_pixels)
    ) from error
  except ImageError:
    raise
  except Exception as error:  # Pillow's readers raise whatever they meet.
    raise ImageError(f"the image is broken: {error}") from error
  return pixels.reshape(*pixels.shape[:2], channels)


@dataclasses.dataclass(frozen=True)
class _Levels:
  """What the pixels of more than 8 bits stand for.

  Attributes:
    white: the value that becomes 255; None if the file does not declare it.
    unsigned: whether Pillow's int32 are uint32.
    inverted: whether this value is black, and 0 white.
  """

  white: float | None
  unsigned: bool = False
  inverted: bool = False

  def to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
    """Returns uint8 [h, w] of int or float [h, w].

    Raises:
      ImageError: if values are not between 0 and the declared maximum.
    """
    if self.unsigned:
      pixels = pixels.view(np.uint32)
    if self.white is None:
      kind = (
        "floating-point" if pixels.dtype.kind == "f" else "signed or 32-bit"
      )
      raise ImageError(
        f"the image has {kind} pixels and does not declare their largest "
        "value: convert it to 8 bits"
      )
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= self.white:  # NaN is not.
      raise ImageError(
        f"the image has pixels of {low} to {high} and declares 0 to "
        f"{self.white:g}: convert it to 8 bits"
      )
    if self.white == 0xFFFF:  # The upper byte, as Pillow has it of colors.
      scaled = pixels.astype(np.uint32) >> 8
    else:
      scaled = np.round(pixels * (255 / self.white))
    scaled = scaled.astype(np.uint8)
    return 255 - scaled if self.inverted else scaled


def _levels(image: Image.Image) -> _Levels:
  """Returns what an opened file declares of its pixels: a rule per format.

  Raises:
    ImageError: for colors of more than 8 bits of which Pillow would give the
      upper byte, where the file declares another maximum.
  """
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    # PNG has 16 bits; Pillow scales a PGM by its maxval to as many. A PFM has
    # floating-point pixels without a maximum.
    wide = image.format in ("PNG", "PPM") and image.mode != "F"
    return _Levels(0xFFFF if wide else None)
  tags = image.tag_v2
  bits, kind = max(tags.get(258, (1,))), tags.get(339, (1,))[0]
  # SMaxSampleValue, or MaxSampleValue.
  declared = float(np.max(tags.get(341, tags.get(281, 0)))) or None
  # 16 bits are as good as a declaration, for there is no other way to write an
  # unsigned TIFF of them; 32 bits seldom have values that large.
  by_bits = 2**bits - 1 if kind == 1 and bits <= 16 else None
  white = declared or by_bits
  gray = image.mode == "F" or image.mode.startswith("I")
  if bits > 8 and not gray and white != 0xFFFF:
    raise ImageError(
      f"the image has colors of {bits} bits and declares 0 to {white:g}: "
      "convert it to 8 bits"
    )
  unsigned = kind == 1 and image.mode == "I"
  return _Levels(white, unsigned, inverted=tags.get(262) == 0)


def _convert(image: Image.Image, channels: int, levels: _Levels) -> np.ndarray:
  if image.mode == "F" or image.mode.startswith("I"):
    image = Image.fromarray(levels.to_8_bits(np.asarray(image)))
  if "transparency" in image.info:
    image = image.convert("RGBA")
  return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise ImageError(_too_large(f"{height} x {width} pixels", max_pixels))


def _too_large(size: str, max_pixels: int) -> str:
  return (
    f"the image has {size}, more than max_pixels, {max_pixels:,}: a file that "
    "fills the memory"
  )
