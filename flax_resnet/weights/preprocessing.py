"""What weights expect of an image."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Annotated, Any

from flax_resnet import schema
from flax_resnet.schema import (
  height_and_width,
  ImageSize,
  Interpolation,
  Positive,
  Range,
)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What weights expect of an image.

  Attributes:
    image_size: height and width that the network sees, in pixels: one number if
      they are equal, or both.
    crop_fraction: side of the center crop over the short side of the image, in
      [0.001, 1]; see `before_crop`.
    interpolation: filter of the resize.
    mean: mean by channel, of images scaled to [0, 1].
    std: standard deviation by channel.
    resize_first: whether the whole image is resized before the crop, see
      `data.crops.center_crop`; default True, as in torchvision and timm.

  Raises:
    ValueError: for a value of the wrong type or out of its range.
  """

  image_size: ImageSize
  crop_fraction: Annotated[float, Range(minimum=0.001, maximum=1)]
  interpolation: Interpolation
  mean: Sequence[float]
  std: Sequence[Positive]
  resize_first: bool = True

  def __post_init__(self):
    schema.check_fields(self)
    if len(self.mean) != len(self.std):
      raise ValueError(
        f"mean is {self.mean} and std {self.std}: give one of each a channel"
      )

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width that the network sees, in pixels."""
    return height_and_width(self.image_size)

  @property
  def before_crop(self) -> tuple[int, int]:
    """Height and width that an image just covers before the crop, in pixels.

    Rounded down, as timm and transformers do it: 235 for 224 of 0.95.
    """
    height, width = self.shape
    # The quotient of two whole numbers may be a little less than it is. What is
    # not a square has the fraction itself, not such a quotient.
    more = 1e-6 if height == width else 0
    return (
      math.floor(height / self.crop_fraction + more),
      math.floor(width / self.crop_fraction + more),
    )

  @property
  def short_side(self) -> int:
    """Short side of an image of the crop's shape before the crop, in pixels."""
    return min(self.before_crop)

  @property
  def center_crop_fraction(self) -> float:
    """The fraction by which `data.crops.center_crop` cuts the same center."""
    height, width = self.shape
    # That rounds a square's to the nearest number, and others down.
    return height / self.short_side if height == width else self.crop_fraction

  def with_channels(self, channels: int) -> "Preprocessing":
    """Returns the preprocessing of images with another number of channels.

    One channel gets the average of mean and std, more get them in turn.
    """

    def adapted(values: Sequence[float]) -> tuple[float, ...]:
      if channels == 1:
        return (sum(values) / len(values),)
      return tuple(values[n % len(values)] for n in range(channels))

    mean, std = adapted(self.mean), adapted(self.std)
    return dataclasses.replace(self, mean=mean, std=std)

  @classmethod
  def of_run(cls, config: Mapping[str, Any]) -> "Preprocessing":
    """Returns how a run evaluates, from its config."""
    data, augment = config["data"], config["augment"]
    size = data.get("eval_image_size") or data["image_size"]
    fraction = data.get("center_crop_fraction", 1.0)
    height, width = height_and_width(size)
    if height == width:  # As `crops.center_crop` rounds it.
      fraction = height / round(height / fraction)
    return cls(
      image_size=height if height == width else (height, width),
      crop_fraction=fraction,
      interpolation=data.get("eval_interpolation", "bilinear"),
      mean=tuple(augment["mean"]),
      std=tuple(augment["std"]),
      resize_first=data.get("eval_resize_first", False),
    )


# Of torchvision's first weights, and of most others for photographs.
IMAGENET = Preprocessing(
  image_size=224,
  crop_fraction=0.875,
  interpolation="bilinear",
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
)
