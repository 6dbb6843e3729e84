"""What weights expect of an image."""

from collections.abc import Mapping
import dataclasses
from typing import Any

# As many pixels as `data.decoding.MAX_PIXELS`.
MAX_IMAGE_SIZE = 9_459
# Pillow's.
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What weights expect of an image.

  Attributes:
    image_size: Height and width that the network sees.
    crop_fraction: Side of the centre crop over the short side of the image.
    interpolation: Of the resize: "bilinear", "bicubic", ...
    mean: By channel, of images scaled to [0, 1].
    std: By channel.

  Raises:
    ValueError: For a value that cannot be.
  """

  image_size: int
  crop_fraction: float
  interpolation: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self):
    size = self.image_size
    self._check("image_size", type(size) is int and 0 < size <= MAX_IMAGE_SIZE)
    share = self.crop_fraction
    self._check("crop_fraction", _is_number(share) and 1e-3 <= share <= 1)
    self._check("interpolation", self.interpolation in INTERPOLATIONS)
    self._check("mean", all(map(_is_number, self.mean)))
    self._check("std", all(_is_number(x) and x > 0 for x in self.std))
    self._check("std", len(self.std) == len(self.mean))

  def _check(self, name: str, holds: bool) -> None:
    if not holds:
      raise ValueError(f"{name} cannot be {getattr(self, name)!r:.100}")

  @classmethod
  def of_run(cls, config: Mapping[str, Any]) -> "Preprocessing":
    """Returns how a run evaluates, from its config."""
    data, augment = config["data"], config["augment"]
    return cls(
      image_size=data.get("eval_image_size") or data["image_size"],
      crop_fraction=data["center_crop_fraction"],
      interpolation="bilinear",
      mean=tuple(augment["mean"]),
      std=tuple(augment["std"]),
    )


def _is_number(value: Any) -> bool:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and abs(value) < 1e30  # So that it is one in float32.


# Of torchvision's first weights, and of most others for photographs.
IMAGENET = Preprocessing(
  image_size=224,
  crop_fraction=0.875,
  interpolation="bilinear",
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
)
