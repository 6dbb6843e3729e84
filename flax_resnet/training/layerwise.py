"""AdamW, LAMB and LARS, which look at one layer at a time."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from flax_resnet.models import stacking


def adamw(
  rate: optax.Schedule,
  betas: Sequence[float],
  weight_decay: float,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Returns Adam with decoupled weight decay, as PyTorch has it.

  Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. A step takes
  `rate * weight_decay` of a kernel.
  """
  first, second = betas
  return by_layer(
    optax.adamw(
      rate, first, second, eps, weight_decay=weight_decay, mask=decayed
    )
  )


def lamb(
  rate: optax.Schedule,
  betas: Sequence[float],
  weight_decay: float,
  eps: float = 1e-6,
) -> optax.GradientTransformation:
  """Returns LAMB as timm has it, which trained "ResNet strikes back".

  You et al. 2020, https://arxiv.org/abs/1904.00962; Wightman et al. 2021,
  https://arxiv.org/abs/2110.00476. Unlike `optax.lamb`, scales and biases are
  not scaled by their norms; timm's also has `clip_norm=1.0`.
  """
  first, second = betas
  return by_layer(
    optax.chain(
      optax.scale_by_adam(first, second, eps),
      optax.add_decayed_weights(weight_decay, mask=decayed),
      _trust_ratio(),
      optax.scale_by_learning_rate(rate),
    )
  )


def lars(
  rate: optax.Schedule,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  trust_coefficient: float = 0.001,
  eps: float = 0.0,
) -> optax.GradientTransformation:
  """Returns LARS; scales and biases get SGD without weight decay, as in MLPerf.

  You et al. 2017, https://arxiv.org/abs/1708.03888. As in `optax.lars`, a
  kernel's norm is divided by that of gradient plus decay, where the paper adds
  the norms of the two.
  """
  return by_layer(
    optax.chain(
      optax.add_decayed_weights(weight_decay, mask=decayed),
      _trust_ratio(trust_coefficient, eps),
      optax.scale_by_learning_rate(rate),
      optax.trace(momentum, nesterov),
    )
  )


def _trust_ratio(
  coefficient: float = 1.0, eps: float = 0.0
) -> optax.GradientTransformation:
  """Scales the update of each kernel to a share of the kernel's own norm.

  Scales and biases keep theirs: their norms say little, and are 0 at first.
  """
  ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient, eps=eps)
  return optax.masked(ratio, decayed)


def by_layer(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Shows an optimizer the layers of `scan=True` one by one.

  There, the kernels of several blocks lie in one array, which has one norm, and
  their scales in a matrix, which looks like a kernel.
  """

  def init(params):
    return optimizer.init(_single(params))

  def update(updates, state, params=None):
    if not _is_stacked(updates):
      return optimizer.update(updates, state, params)
    single = None if params is None else _single(params)
    updates, state = optimizer.update(_single(updates), state, single)
    return stacking.stack({"params": updates})["params"], state

  return optax.GradientTransformation(init, update)


def _single(params: Any) -> Any:
  if not _is_stacked(params):
    return params
  return stacking.unstack({"params": params})["params"]


def _is_stacked(params: Any) -> bool:
  return any(name.endswith("_blocks") for name in params)


def decayed(params: Any) -> Any:
  """Marks the kernels; scales and biases are not decayed (Goyal et al.).

  By their names, as the scales of `scan=True` lie in a matrix.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
