"""What weights expect of an image."""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What weights expect of an image.

  Attributes:
    image_size: Height and width that the network sees.
    crop_fraction: Side of the centre crop over the short side of the image.
    interpolation: Of the resize: "bilinear", "bicubic", ...
    mean: By channel, of images scaled to [0, 1].
    std: By channel.
  """

  image_size: int
  crop_fraction: float
  interpolation: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

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


# Of torchvision's first weights, and of most others for photographs.
IMAGENET = Preprocessing(
  image_size=224,
  crop_fraction=0.875,
  interpolation="bilinear",
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
)
