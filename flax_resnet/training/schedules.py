"""The learning rate by step: a warm-up, and a fall after it."""

from collections.abc import Sequence
import math
from typing import Literal

import optax

Name = Literal["cosine", "step", "polynomial", "one_cycle"]
Warmup = Literal["linear", "constant"]


def make_schedule(
  num_steps: int,
  *,
  name: Name,
  peak: float,
  warmup: float,
  warmup_start: float,
  warmup_method: Warmup,
  boundaries: Sequence[float],
  decay_rate: float,
  power: float,
  final_rate: float,
) -> optax.Schedule:
  """Returns the learning rate by step; see `optim.make_optimizer`.

  Args:
    num_steps: Of the whole run; the rate after the last is that of the end.
    name: How the rate falls.
    peak: The rate at which the fall starts.
    warmup: Share of the run before the fall.
    warmup_start: The rate at the start of the warm-up.
    warmup_method: Whether it rises to the peak or stays as it starts.
    boundaries: Of "step".
    decay_rate: Of "step".
    power: Of "polynomial".
    final_rate: Share of the peak at the end, of all but "step".

  Raises:
    ValueError: For a number out of its range.
  """
  check_range("learning_rate", peak, peak > 0, "more than 0")
  check_range("warmup", warmup, 0 <= warmup < 1, "a share of the run, 0 to 1")
  check_range(
    "warmup_start", warmup_start, warmup_start >= 0, "a rate, 0 or more"
  )
  for boundary in boundaries:
    check_range("boundaries", boundary, 0 < boundary < 1, "shares of the run")
  check_range("decay_rate", decay_rate, 0 < decay_rate <= 1, "a factor up to 1")
  check_range("power", power, power > 0, "more than 0")
  check_range(
    "final_rate", final_rate, 0 <= final_rate <= 1, "a share of learning_rate"
  )
  if name == "one_cycle" and not warmup:
    raise ValueError(
      "warmup is 0.0, and one_cycle rises before it falls: use the share of "
      "the run in which it rises"
    )

  rise = round(warmup * num_steps)
  left = num_steps - rise
  if name == "cosine":
    rate = optax.cosine_decay_schedule(peak, left, alpha=final_rate)
  elif name == "step":
    steps = {round(b * num_steps) - rise: decay_rate for b in boundaries}
    rate = optax.piecewise_constant_schedule(peak, steps)
  else:
    power = 1.0 if name == "one_cycle" else power
    rate = optax.polynomial_schedule(peak, peak * final_rate, power, left)
  if rise:
    end = peak if warmup_method == "linear" else warmup_start
    warm = optax.linear_schedule(warmup_start, end, rise)
    rate = optax.join_schedules([warm, rate], [rise])
  return rate


def check_range(name: str, value: float, holds: bool, wanted: str) -> None:
  """Raises ValueError, which says what to use, unless a number `holds`."""
  if not holds or not math.isfinite(value):
    raise ValueError(f"{name} is {value}: use {wanted}")
