"""What torchvision and timm do: `python -m tests.data.torch_policies`.

The references were written with torch 2.13.0, torchvision 0.28.0, timm 1.0.31
and Pillow 13.0.0.
"""

from unittest import mock

import numpy as np
from PIL import Image

from tests.data.policy_cases import (
  BINS,
  LEVELS,
  METHOD,
  picture,
  pixels,
  REFERENCES,
)
from tests.weights import torch_models


def torchvision_results(name: str, channels: int) -> np.ndarray:
  """Returns what a policy of torchvision can do, [operation * bin, h, w, c]."""
  torch_models.load_torchvision()
  from torchvision.transforms import autoaugment, InterpolationMode

  image = picture(channels)
  policy = getattr(autoaugment, name)()
  size = () if name == "TrivialAugmentWide" else (image.size[::-1],)
  results = []
  for key, (amounts, _) in policy._augmentation_space(31, *size).items():
    for amount in amounts.expand(31)[list(BINS)].tolist():
      method = InterpolationMode.BILINEAR
      result = autoaugment._apply_op(image, key, amount, method, None)
      results.append(pixels(result))
  return np.stack(results)


def timm_results(
  image: Image.Image, level: float
) -> list[tuple[np.ndarray, ...]]:
  """Returns what timm makes of a picture, by operation: in both directions."""
  torch_models.load_torchvision()
  from timm.data import auto_augment

  gray = 128 if image.mode == "L" else (128,) * 3
  given = {"interpolation": METHOD, "img_mean": gray}
  found = []
  for name in auto_augment.rand_augment_choices("", increasing=True):
    each = auto_augment.AugmentOp(name, 1.0, level, given)
    both = []
    for drawn in (0.0, 1.0):
      with mock.patch.object(auto_augment.random, "random", lambda x=drawn: x):
        both.append(pixels(each(image)))
    found.append(tuple(both))
  return found


def main() -> None:
  """Writes the references, for machines without PyTorch."""
  references = {}
  for channels in (1, 3):
    for name in ("RandAugment", "TrivialAugmentWide"):
      references[f"{name}/{channels}"] = torchvision_results(name, channels)
    references[f"timm/{channels}"] = np.stack(
      [timm_results(picture(channels), level) for level in LEVELS]
    )
  np.savez_compressed(REFERENCES, **references)
  print(f"{REFERENCES}: {REFERENCES.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
