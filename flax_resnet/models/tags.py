"""Published weights of the networks, by tag: "resnet50.a1_in1k".

`tags.csv` holds all of timm's, in timm's order, and the names of its networks
that have none. `python -m tests.weights.timm_tags` writes it, from timm 1.0.31
and from its table of results on the validation images of ImageNet,
results/results-imagenet.csv (commit aa4b585, August 2026): `top1` is what it
says for the size and crop that the weights are tested with.
"""

import csv
import dataclasses
import functools
import pathlib
from typing import Any, cast, Literal

from flax_resnet.errors import suggestion, WeightsError

TABLE = pathlib.Path(__file__).with_suffix(".csv")


@dataclasses.dataclass(frozen=True)
class Tag:
  """Published weights of a network.

  Attributes:
    model: name of the network.
    tag: name of the weights; "" for a network that has none.
    default: whether timm takes these where no tag is given.
    repository: repository of the Hugging Face hub.
    num_classes: number of classes; 0 for weights without a head.
    image_size: height and width that they were trained on, in pixels.
    crop_fraction: side of the center crop over the short side, at that size.
    test_image_size: height and width that they are best tested with.
    test_crop_fraction: side of the center crop at that size.
    interpolation: filter of the resize.
    mean: mean by channel, of images scaled to [0, 1].
    std: standard deviation by channel.
    license: licence, as SPDX writes it, in lower case; "" if unknown.
    top1: published accuracy on ImageNet in percent; None if there is none.
    source: paper or code that the weights are from.
  """

  model: str
  tag: str
  default: bool
  repository: str
  num_classes: int
  image_size: int
  crop_fraction: float
  test_image_size: int
  test_crop_fraction: float
  interpolation: Literal["bilinear", "bicubic"]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  license: str
  top1: float | None
  source: str

  @property
  def name(self) -> str:
    """Name of the network and of the weights: "resnet50.a1_in1k"."""
    return f"{self.model}.{self.tag}"


@functools.cache
def timm_models() -> frozenset[str]:
  """Returns the names of timm's networks, with or without weights."""
  return frozenset(row["model"] for row in _rows())


@functools.cache
def published() -> dict[str, Tag]:
  """Returns all published weights by name."""
  tags = (
    Tag(
      model=row["model"],
      tag=row["tag"],
      default=row["default"] == "yes",
      repository=row["repository"],
      num_classes=int(row["num_classes"]),
      image_size=int(row["image_size"]),
      crop_fraction=float(row["crop_fraction"]),
      test_image_size=int(row["test_image_size"]),
      test_crop_fraction=float(row["test_crop_fraction"]),
      interpolation=cast(Any, row["interpolation"]),
      mean=tuple(map(float, row["mean"].split())),
      std=tuple(map(float, row["std"].split())),
      license=row["license"],
      top1=float(row["top1"]) if row["top1"] else None,
      source=row["source"],
    )
    for row in _rows()
    if row["tag"]
  )
  return {tag.name: tag for tag in tags}


def find(name: str) -> Tag:
  """Returns published weights.

  Args:
    name: network and tag, "resnet50.a1_in1k"; or a network alone, for the
      weights that timm takes then.

  Raises:
    WeightsError: if there are none of this name.
  """
  if tag := published().get(name):
    return tag
  model = name.partition(".")[0]
  of_model = {k: tag for k, tag in published().items() if tag.model == model}
  if not of_model:
    raise WeightsError(f"{model} has no published weights: give a weight file")
  if name == model:
    return next(tag for tag in of_model.values() if tag.default)
  raise WeightsError(f"unknown tag {name!r}: {suggestion(name, of_model)}")


@functools.cache
def _rows() -> list[dict[str, str]]:
  with TABLE.open(newline="") as file:
    return list(csv.DictReader(file))
