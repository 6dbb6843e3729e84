"""The learning rate by step: a warm-up, and a fall after it."""

from collections.abc import Sequence
from typing import Annotated, Literal

import optax

from flax_resnet.schema import NotNegative, Positive, Range, Rate, Share


def make_schedule(
  num_steps: int,
  *,
  schedule: Literal["cosine", "step", "polynomial", "one_cycle"],
  learning_rate: Positive,
  warmup: Rate = 0.0,
  warmup_start: NotNegative = 0.0,
  warmup_method: Literal["linear", "constant"] = "linear",
  boundaries: Sequence[Annotated[float, Range(above=0, below=1)]] = (),
  decay_rate: Annotated[float, Range(above=0, maximum=1)] = 0.1,
  power: Positive = 2.0,
  final_rate: Share = 0.0,
) -> optax.Schedule:
  """Returns the learning rate as a function of the completed updates.

  Times are shares of the run, so that a run of another length has the same
  shape: 32,000 of 64,000 steps are 0.5. After the run the rate stays as it is
  at its end.

  Args:
    num_steps: length of the run in steps.
    schedule: way in which the rate falls from its peak. "cosine": along half a
      wave (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983); "step":
      by `decay_rate` at each of `boundaries`; "polynomial": as the `power` of
      the time that is left, as in MLPerf with LARS; "one_cycle": along a
      straight line, after a `warmup` along another (Smith & Topin 2018,
      https://arxiv.org/abs/1708.07120, with a constant momentum).
    learning_rate: rate at the peak, above 0.
    warmup: share of the run before the peak, in [0, 1); default 0.
    warmup_start: rate at the start of the warm-up, 0 or more; default 0. One
      above the peak is the peak.
    warmup_method: "linear", the default, for a rise from `warmup_start` to the
      peak; "constant" for `warmup_start` until the peak, as He et al. 2015
      train ResNet-110.
    boundaries: shares of the run, in (0, 1), of "step"; default none.
    decay_rate: factor of the rate at each boundary, in (0, 1], of "step";
      default 0.1.
    power: exponent above 0, of "polynomial"; default 2.
    final_rate: rate at the end as a share of the peak, in [0, 1], of all but
      "step"; default 0.

  Raises:
    ValueError: if "one_cycle" has no warm-up, or the warm-up leaves no step.
  """
  if schedule == "one_cycle" and not warmup:
    raise ValueError(
      "warmup is 0.0, and one_cycle rises before it falls: use the share of "
      "the run in which it rises"
    )
  peak = learning_rate
  rise = round(warmup * num_steps)
  if not (left := num_steps - rise):
    raise ValueError(
      f"warmup is {warmup}, which of a run of {num_steps} steps is all: use a "
      "smaller share, or a longer run"
    )
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(peak, left, alpha=final_rate)
  elif schedule == "step":
    steps: dict[int, float] = {}
    for boundary in boundaries:  # In a short run two may be the same step.
      step = round(boundary * num_steps) - rise
      steps[step] = steps.get(step, 1.0) * decay_rate
    rate = optax.piecewise_constant_schedule(peak, steps)
  else:
    power = 1.0 if schedule == "one_cycle" else power
    rate = optax.polynomial_schedule(peak, peak * final_rate, power, left)
  if rise:
    start = min(warmup_start, peak)
    end = peak if warmup_method == "linear" else start
    warm = optax.linear_schedule(start, end, rise)
    rate = optax.join_schedules([warm, rate], [rise])
  return rate
