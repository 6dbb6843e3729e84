"""Whether the fields of a network can be."""

from collections.abc import Sequence
import inspect
import numbers
from typing import Any, TYPE_CHECKING

import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from flax_resnet.models.plan import stem_stride
from flax_resnet.models.shortcut import SHORTCUTS
from flax_resnet.models.stem import STEMS

if TYPE_CHECKING:
  from flax_resnet.models.resnet import ResNet

NORMS = ("batch", "none")
# Far above what anyone has, far below what is slow to count or overflows.
MAX_BLOCKS = 10_000
MAX_FEATURES = 2**16
MAX_CLASSES = 10_000_000
_WHOLE = ("num_classes", "norm_group_size", "output_stride")
_RATES = ("stochastic_depth", "dropout", "head_dropout")
_SWITCHES = (
  "use_bias",
  "zero_init_residual",
  "space_to_depth",
  "remat",
  "scan",
)


def check_fields(net: "ResNet") -> None:
  """Raises ValueError when a field of a network cannot be."""
  _check_types(net)
  _one_of("shortcut", net.shortcut, SHORTCUTS)
  _one_of("stem", net.stem, STEMS)
  _one_of("norm", net.norm, NORMS)
  if len(net.stage_sizes) != len(net.stage_features):
    raise ValueError(
      f"stage_sizes has {len(net.stage_sizes)} entries and stage_features "
      f"{len(net.stage_features)}: give one of each a stage"
    )
  if not net.stage_sizes or sum(net.stage_sizes) > MAX_BLOCKS:
    raise ValueError(
      f"stage_sizes is {_short(net.stage_sizes)}: use 1 to {MAX_BLOCKS:,} "
      "blocks in all"
    )
  for field in ("dtype", "param_dtype"):
    _check_dtype(field, getattr(net, field))
  if not 0 <= net.num_classes <= MAX_CLASSES:
    raise ValueError(
      f"num_classes is {net.num_classes}: use 0 to {MAX_CLASSES:,}"
    )
  for field in _RATES:
    if not 0 <= (rate := getattr(net, field)) < 1:
      raise ValueError(f"{field} is {rate}: use 0 or more, less than 1")
  if net.dropout and "dropout" not in inspect.signature(net.block).parameters:
    raise ValueError(
      "dropout is an option of Wide ResNets of basic blocks (wrn_28_10): use "
      "stochastic_depth in other networks"
    )
  if net.space_to_depth and net.stem != "imagenet":
    raise ValueError(
      f"space_to_depth is a way to compute the 7x7 stem: stem {net.stem!r} has "
      "none"
    )
  if net.norm == "none" and net.zero_init_residual and not net.pre_activation:
    raise ValueError(
      "zero_init_residual starts the last scale of BatchNorm at 0, and with "
      'norm="none" there is none: use one of the two'
    )
  if net.norm_group_size is not None and net.norm_group_size < 1:
    raise ValueError(
      f"norm_group_size is {net.norm_group_size}: use None for the whole "
      "batch, or 1 or more"
    )
  strides = [stem_stride(net.stem) << n for n in range(len(net.stage_sizes))]
  if net.output_stride is not None and net.output_stride not in strides:
    raise ValueError(
      f"output_stride is {net.output_stride}: use one of "
      f"{', '.join(map(str, strides))}"
    )


def _check_types(net: "ResNet") -> None:
  """Raises ValueError where a field is of a type that it cannot be.

  A config of JSON, which others may have written, reaches a network as it is.
  """
  for field in _WHOLE:
    value = getattr(net, field)
    absent = value is None and field != "num_classes"
    _check_type(field, value, absent or _is_number(value, numbers.Integral))
  for field in _RATES:
    value = getattr(net, field)
    _check_type(field, value, _is_number(value, numbers.Real))
  for field in _SWITCHES:
    value = getattr(net, field)
    _check_type(field, value, isinstance(value, (bool, np.bool_)))
  features = net.stem_features
  _check_type(
    "stem_features", features, features is None or _is_width(features)
  )
  for field, fits in (("stage_sizes", _is_size), ("stage_features", _is_width)):
    value = getattr(net, field)
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    _check_type(field, value, listed and all(map(fits, value)))
  _check_type("block", net.block, callable(net.block))


def _check_type(field: str, value: Any, fits: bool) -> None:
  if not fits:
    raise ValueError(f"{field} cannot be {_short(value)}")


def _is_number(value: Any, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
  return _is_number(value, numbers.Integral) and value > 0


def _is_width(value: Any) -> bool:
  return _is_size(value) and value <= MAX_FEATURES


def _short(value: Any) -> str:
  return f"{value!r:.60}"


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
  if value not in known:
    raise ValueError(f"unknown {what} {value!r}: use one of {', '.join(known)}")


def _check_dtype(field: str, dtype: DTypeLike) -> None:
  try:
    if jnp.issubdtype(dtype, jnp.floating):
      return
  except TypeError:
    pass
  raise ValueError(f"{field} is {dtype!r}: use float32, bfloat16 or float64")
