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


def torchvision_choices(name: str, size: tuple[int, int]) -> dict:
  """Returns {operation: (31 amounts or [0], signed)}, in their order."""
  torch_models.load_torchvision()
  from torchvision.transforms import autoaugment

  policy = getattr(autoaugment, name)()
  where = (31,) if name == "TrivialAugmentWide" else (31, size[::-1])
  return {
    key: (np.atleast_1d(amounts.numpy()).astype(float), signed)
    for key, (amounts, signed) in policy._augmentation_space(*where).items()
  }


def torchvision_result(
  image: Image.Image, operation: str, amount: float, fill=None
) -> np.ndarray:
  """Returns what torchvision makes of a picture."""
  from torchvision.transforms import autoaugment, InterpolationMode

  return pixels(
    autoaugment._apply_op(
      image, operation, amount, InterpolationMode.BILINEAR, fill
    )
  )


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


def torchvision_results(name: str, channels: int) -> np.ndarray:
  """Returns what a policy of torchvision can do, [operation * bin, h, w, c]."""
  image = picture(channels)
  return np.stack(
    [
      torchvision_result(image, key, amounts[k if len(amounts) > 1 else 0])
      for key, (amounts, _) in torchvision_choices(name, image.size).items()
      for k in BINS
    ]
  )


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
