"""How fast training goes, evaluation and saving left out."""

from collections.abc import Iterator
import contextlib
import time
from typing import Any

import jax


class Pace:
  """A stopwatch that counts steps.

  Args:
    step: Updates that are completed when it starts.
  """

  def __init__(self, step: int):
    self._step = step
    self._since = time.monotonic()

  @contextlib.contextmanager
  def pause(self, state: Any) -> Iterator[None]:
    """Leaves a `with` block out, once the steps up to `state` are done."""
    jax.block_until_ready(state)
    start = time.monotonic()
    yield
    self._since += time.monotonic() - start

  def lap(self, step: int) -> float:
    """Returns the steps a second since the last call."""
    now = time.monotonic()
    pace = (step - self._step) / max(now - self._since, 1e-9)
    self._step, self._since = step, now
    return pace
