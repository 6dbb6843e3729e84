"""Which fields of a network go together."""

import inspect
from typing import Any

import jax.numpy as jnp

from flax_resnet.models.norms import GROUPS
from flax_resnet.models.stem import stem_stride, stem_widths

# Far above any network, far below numbers that are slow to count or overflow.
MAX_BLOCKS = 10_000


def check_together(net: Any) -> None:
  """Raises ValueError for fields of a `ResNet` that do not go together."""
  if len(net.stage_sizes) != len(net.stage_features):
    raise ValueError(
      f"stage_sizes has {len(net.stage_sizes)} entries and stage_features "
      f"{len(net.stage_features)}: give one of each a stage"
    )
  if not 1 <= sum(net.stage_sizes) <= MAX_BLOCKS:
    raise ValueError(
      f"stage_sizes is {net.stage_sizes!r:.60}: use 1 to {MAX_BLOCKS:,} blocks "
      "in all"
    )
  for field in ("dtype", "param_dtype"):
    if not _is_floating(dtype := getattr(net, field)):
      raise ValueError(
        f"{field} is {dtype!r:.60}: use float32, bfloat16, float16 or float64"
      )
  if len(net.stage_blocks) != len(net.stage_sizes):
    raise ValueError(
      f"block has {len(net.stage_blocks)} entries and stage_sizes "
      f"{len(net.stage_sizes)}: give one of each a stage, or one for all"
    )
  orders = {
    getattr(block, "func", block).pre_activation for block in net.stage_blocks
  }
  if len(orders) > 1:
    raise ValueError(
      "block has classes with the norms before the convolutions and others "
      "with them behind: use those of one kind"
    )
  _check_block_options(net)
  if net.space_to_depth and net.stem not in ("imagenet", "bit"):
    raise ValueError(
      f"space_to_depth is a way to compute the 7x7 stem: stem {net.stem!r} has "
      "none"
    )
  if net.norm == "none" and net.zero_init_residual and not net.pre_activation:
    raise ValueError(
      "zero_init_residual starts the last scale of BatchNorm at 0, and with "
      'norm="none" there is none: use one of the two'
    )
  if net.norm_group_size and net.norm not in ("batch", "none"):
    raise ValueError(
      f"norm_group_size is of BatchNorm, and norm={net.norm!r} normalizes each "
      "example by itself: use one of the two"
    )
  stem = stem_widths(net.stem, net.stem_features or net.stage_features[0])
  odd = [width for width in [*stem, *net.stage_features] if width % GROUPS]
  if odd and net.norm in ("group", "evonorm"):
    raise ValueError(
      f"norm={net.norm!r} is over {GROUPS} groups of channels, which {odd[0]} "
      f"channels are not: use multiples of {GROUPS} for stage_features and the "
      "stem"
    )
  if (
    net.zero_init_residual and net.pre_activation and net.weight_standardization
  ):
    raise ValueError(
      "zero_init_residual starts the last kernel of each block at 0, which "
      "cannot be standardized: leave out one of the two"
    )
  if net.num_classes and net.global_pool == "none":
    raise ValueError(
      f"num_classes is {net.num_classes}, and a head needs a pooled map: use 0 "
      'with global_pool="none"'
    )
  strides = [stem_stride(net.stem) << n for n in range(len(net.stage_sizes))]
  if net.output_stride is not None and net.output_stride not in strides:
    raise ValueError(
      f"output_stride is {net.output_stride}: use one of "
      f"{', '.join(map(str, strides))}"
    )


def _check_block_options(net: Any) -> None:
  """Raises ValueError for fields that the blocks of a network do not have."""

  def all_have(option: str) -> bool:
    return all(
      option in inspect.signature(block).parameters
      for block in net.stage_blocks
    )

  if net.dropout and not all_have("dropout"):
    raise ValueError(
      "dropout is an option of Wide ResNets of basic blocks (wrn_28_10): use "
      "stochastic_depth in other networks"
    )
  pools = net.stem not in ("deep_convolutional", "bit")
  if net.downsampling != "stride" and not (pools and all_have("downsampling")):
    raise ValueError(
      f"downsampling={net.downsampling!r} is an option of basic and bottleneck "
      'blocks behind a max-pool (resnet50, resnet50d): use "stride" in others'
    )
  widths = net.block_widths or [()] * sum(net.stage_sizes)
  if net.block_widths and (net.scan or not all_have("widths")):
    raise ValueError(
      "block_widths is of bottleneck blocks that differ from each other "
      "(ecaresnet50d_pruned), and scan of equal ones: leave out one of the two"
    )
  if len(widths) != sum(net.stage_sizes) or {*map(len, widths)} - {0, 3}:
    raise ValueError(
      "block_widths is not three numbers of channels for each of the "
      f"{sum(net.stage_sizes)} blocks: give those of a pruned net"
    )


def _is_floating(dtype: Any) -> bool:
  try:
    return bool(jnp.issubdtype(dtype, jnp.floating))
  except TypeError:
    return False
