"""SGD with Nesterov momentum or Muon, weight decay and a schedule."""

from collections.abc import Sequence
import math
from typing import Any, Literal

import jax
import optax


def make_optimizer(
  num_steps: int,
  *,
  name: Literal["sgd", "muon"],
  learning_rate: float,
  schedule: Literal["cosine", "step"],
  warmup: float,
  boundaries: Sequence[float],
  decay_rate: float,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns an optimizer and its learning rate by step.

  Times are shares of the run, so that a run of another length has the same
  shape: 32,000 of 64,000 steps are 0.5.

  Args:
    num_steps: Of the whole run.
    name: "sgd" is that of the ResNet papers, see `sgd`; "muon" learns more from
      few epochs, see `muon`.
    learning_rate: At the peak.
    schedule: "cosine" falls to 0 along half a wave (Loshchilov & Hutter 2017);
      "step" multiplies by `decay_rate` at each of `boundaries`.
    warmup: Share of the run in which the rate rises linearly from 0.
    boundaries: Shares of the run, of "step".
    decay_rate: Of "step".
    momentum: 0 for none.
    nesterov: Whether the momentum is Nesterov's.
    weight_decay: Factor of the parameters that `decayed` marks.

  Raises:
    ValueError: For a number out of its range.
  """
  _check("learning_rate", learning_rate, learning_rate > 0, "more than 0")
  _check("warmup", warmup, 0 <= warmup < 1, "a share of the run, 0 to 1")
  for boundary in boundaries:
    _check("boundaries", boundary, 0 < boundary < 1, "shares of the run")
  _check("decay_rate", decay_rate, 0 < decay_rate <= 1, "a factor up to 1")
  _check("momentum", momentum, 0 <= momentum < 1, "0 or more, less than 1")
  _check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")

  rise = round(warmup * num_steps)
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(learning_rate, num_steps - rise)
  else:
    steps = {round(b * num_steps) - rise: decay_rate for b in boundaries}
    rate = optax.piecewise_constant_schedule(learning_rate, steps)
  if rise:
    warm = optax.linear_schedule(0.0, learning_rate, rise)
    rate = optax.join_schedules([warm, rate], [rise])
  make = {"sgd": sgd, "muon": muon}[name]
  return make(rate, momentum, nesterov, weight_decay), rate


def sgd(
  rate: optax.Schedule, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
  """Returns SGD as the ResNet papers and PyTorch have it.

  Weight decay is an L2 term: it is added to the gradient before the momentum.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=decayed),
    optax.sgd(rate, momentum=momentum or None, nesterov=nesterov),
  )


def muon(
  rate: optax.Schedule, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
  """Returns Muon for the convolutions and SGD for all else (Jordan 2024).

  The momentum of a kernel [h, w, c, features], as a matrix [h w c, features],
  is replaced by the nearest matrix with orthonormal columns (or rows), so that
  every direction learns at the same pace: https://kellerjordan.github.io/posts/muon.
  Weight decay is decoupled: a step takes `rate * weight_decay` of a kernel.
  """
  return optax.chain(
    optax.partition(
      {
        "muon": optax.contrib.scale_by_muon(
          beta=momentum,
          nesterov=nesterov,
          weight_dimension_numbers=_as_matrices,
        ),
        "sgd": optax.trace(momentum, nesterov),
      },
      lambda params: jax.tree.map(
        lambda p: "muon" if p.ndim == 4 else "sgd", params
      ),
    ),
    optax.add_decayed_weights(weight_decay, mask=decayed),
    optax.scale_by_learning_rate(rate),
  )


def _as_matrices(kernels: Any) -> Any:
  matrix = optax.contrib.MuonDimensionNumbers(
    reduction_axis=(0, 1, 2), output_axis=3
  )
  return jax.tree.map(lambda _: matrix, kernels)


def _check(name: str, value: float, holds: bool, wanted: str) -> None:
  if not holds or not math.isfinite(value):
    raise ValueError(f"{name} is {value}: use {wanted}")


def decayed(params: Any) -> Any:
  """Marks the kernels; scales and biases are not decayed (Goyal et al.)."""
  return jax.tree.map(lambda p: p.ndim > 1, params)
