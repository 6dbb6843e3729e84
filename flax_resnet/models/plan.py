"""What each block of a network is."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from flax_resnet.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class BlockPlan:
  """The place of a block in its network.

  Attributes:
    features: Of the stage.
    strides: By which the block makes its input smaller.
    dilations: Before and after the place of the stride.
    drop_rate: Of stochastic depth.
  """

  features: int
  strides: int
  dilations: tuple[int, int]
  drop_rate: float


def plan_stages(net: "ResNet") -> list[list[BlockPlan]]:
  """Returns the blocks of each stage."""
  stride, dilation, number = stem_stride(net.stem), 1, 0
  last = max(sum(net.stage_sizes) - 1, 1)
  stages = []
  for stage, size in enumerate(net.stage_sizes):
    blocks = []
    for block in range(size):
      before, strides = dilation, 1
      if block == 0 and stage > 0:
        if net.output_stride and stride >= net.output_stride:
          dilation *= 2
        else:
          stride, strides = 2 * stride, 2
      blocks.append(
        BlockPlan(
          net.stage_features[stage],
          strides,
          (before, dilation),
          net.stochastic_depth * number / last,
        )
      )
      number += 1
    stages.append(blocks)
  return stages


def stem_stride(stem: str) -> int:
  """Returns the input size over that of the map that the first block sees."""
  return 1 if stem == "cifar" else 4
