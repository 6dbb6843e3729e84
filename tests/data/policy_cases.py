"""The picture and the magnitudes at which policies are compared."""

import pathlib

import numpy as np
from PIL import Image

REFERENCES = pathlib.Path(__file__).with_name("policy_references.npz")
METHOD = Image.Resampling.BILINEAR
BINS = (1, 8, 24)
LEVELS = (0, 3.7, 7)


def picture(channels: int) -> Image.Image:
  """Returns a small one whose histogram is not flat."""
  rng = np.random.default_rng(0)
  pixels = np.clip(rng.normal(120, 60, (10, 11, channels)), 4, 249)
  pixels = pixels.astype(np.uint8)
  return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def pixels(image: Image.Image) -> np.ndarray:
  """Returns uint8 [h, w, c]."""
  return np.asarray(image).reshape(image.height, image.width, -1)
