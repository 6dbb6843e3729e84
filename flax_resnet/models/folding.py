"""BatchNorm folded into the convolutions before it, for inference."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax

from flax_resnet.models.layers import BatchNorm
from flax_resnet.models.resnet import ResNet

Variables = dict[str, Any]


def fold_batch_norm(
  model: ResNet, variables: Mapping[str, Any]
) -> tuple[ResNet, Variables]:
  """Returns a network without BatchNorm that evaluates to the same outputs.

  With running statistics, BatchNorm scales and shifts every channel by numbers
  that no longer change; the convolution before it can do that: its kernel is
  scaled, and it gets a bias.

  Args:
    model: A network whose BatchNorms come after convolutions: all but the
      pre-activation ones.
    variables: Of `model`, {"params": ..., "batch_stats": ...}.

  Returns:
    The network with `norm="none"`, and its variables, {"params": ...}.

  Raises:
    ValueError: For a pre-activation network, or one without BatchNorm.
  """
  if model.pre_activation:
    raise ValueError(
      "BatchNorm of a pre-activation network comes before the convolutions, "
      "with a ReLU between: it cannot be folded into them"
    )
  if model.norm == "none":
    raise ValueError("the network has no BatchNorm to fold")
  params: dict[Any, Any] = traverse_util.flatten_dict(variables["params"])
  stats: dict[Any, Any] = traverse_util.flatten_dict(variables["batch_stats"])
  for *block, norm in {path[:-1] for path in stats}:
    bn, conv = (*block, norm), (*block, norm.replace("bn", "conv"))
    inverse = jax.lax.rsqrt(stats[*bn, "var"] + BatchNorm.epsilon)
    factor = params.pop((*bn, "scale")) * inverse
    # [h, w, i, f] times [f]; in scanned blocks [n, h, w, i, f] times [n, f].
    by_channel = factor[..., None, None, None, :]
    params[*conv, "kernel"] = params[*conv, "kernel"] * by_channel
    bias = params.get((*conv, "bias"), 0.0) - stats[*bn, "mean"]
    params[*conv, "bias"] = params.pop((*bn, "bias")) + bias * factor
  folded = model.clone(norm="none", zero_init_residual=False)
  return folded, {"params": traverse_util.unflatten_dict(params)}
