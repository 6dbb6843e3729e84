"""Published weights of the networks, by tag: "resnet50.a1_in1k".

Those in `packaged/` come with this package, a folder each as
`weights.save_pretrained` writes it. `tags.csv` holds all of timm's, in timm's
order, and the names of its networks that have none. `python -m
tests.weights.timm_tags` writes it, from timm 1.0.31 and from its table of
results on the validation images of ImageNet, results/results-imagenet.csv
(commit aa4b585, August 2026): `top1` is what it says for the size and crop that
the weights are tested with.
"""

from collections.abc import Iterator, Mapping
import csv
import dataclasses
import functools
import json
import pathlib
from typing import Any, cast, Literal

from flax_resnet.errors import suggestion, WeightsError

TABLE = pathlib.Path(__file__).with_suffix(".csv")
PACKAGED = pathlib.Path(__file__).with_name("packaged")


@dataclasses.dataclass(frozen=True)
class Tag:
  """Published weights of a network.

  Attributes:
    model: name of the network.
    tag: name of the weights; "" for a network that has none.
    default: whether these are taken where no tag is given.
    repository: repository of the Hugging Face hub; "" for those in this
      package.
    num_classes: number of classes; 0 for weights without a head.
    image_size: height and width that they were trained on, in pixels.
    crop_fraction: side of the center crop over the short side, at that size.
    test_image_size: height and width that they are best tested with.
    test_crop_fraction: side of the center crop at that size.
    interpolation: filter of the resize.
    mean: mean by channel, of images scaled to [0, 1].
    std: standard deviation by channel.
    license: licence, as SPDX writes it, in lower case; "" if unknown.
    top1: published accuracy on ImageNet in percent, of those in this package
      on the test set of their recipe; None if there is none.
    source: paper, code or recipe that the weights are from.
    folder: folder of those in this package; None for others.
    fields: fields of the network that differ from those of `model`.
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
  folder: pathlib.Path | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
  """Returns all weights by name: those in this package, then timm's."""
  tags = [
    _packaged(path.parent) for path in sorted(PACKAGED.glob("*/config.json"))
  ]
  return {tag.name: tag for tag in (*tags, *_timm_tags())}


def _packaged(folder: pathlib.Path) -> Tag:
  config = json.loads((folder / "config.json").read_text())
  expected, ours = config["pretrained_cfg"], config["flax_resnet"]
  model, _, tag = folder.name.partition(".")
  size, crop = expected["input_size"][-1], expected["crop_pct"]
  return Tag(
    model=model,
    tag=tag,
    default=True,
    repository="",
    num_classes=config["num_classes"],
    image_size=size,
    crop_fraction=crop,
    test_image_size=size,
    test_crop_fraction=crop,
    interpolation=expected["interpolation"],
    mean=tuple(expected["mean"]),
    std=tuple(expected["std"]),
    license="apache-2.0",
    top1=round(100 * ours["results"]["val/top1"], 3),
    source="the recipe in its README.md",
    folder=folder,
    fields={
      key: tuple(value) if isinstance(value, list) else value
      for key, value in ours.get("fields", {}).items()
    },
  )


def _timm_tags() -> Iterator[Tag]:
  return (
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


def find(name: str) -> Tag:
  """Returns published weights.

  Args:
    name: network and tag, "resnet50.a1_in1k"; or a network alone, for its
      default weights: timm's, or those in this package.

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
