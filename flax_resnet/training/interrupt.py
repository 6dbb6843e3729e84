"""Ctrl-C and preemption: the step in flight ends, then the run stops."""

from collections.abc import Callable, Iterable, Iterator
import os
import signal
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - as StopIteration, no error
  """A run that was stopped by a signal, after a checkpoint.

  Attributes:
    exit_code: 130 after SIGINT, 143 after SIGTERM.
  """

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.exit_code = 128 + signum


class StopSignals:
  """Notes SIGINT and SIGTERM within a `with` block; a second one ends at once.

  Of several hosts, a signal to one stops all, after the same step: JAX notes
  SIGTERM there, and agrees with the others on the step.

  Attributes:
    received: The signal's number, or None.
    stopping: Whether `to_stop` has said so, on all hosts.

  Args:
    hosts: How many there are.
  """

  def __init__(self, hosts: int = 1):
    self.received: int | None = None
    self.stopping = False
    self._alone = hosts == 1
    self._calls = 0

  def __enter__(self) -> "StopSignals":
    signums = [signal.SIGINT, *([signal.SIGTERM] if self._alone else [])]
    self._before = {
      signum: signal.signal(signum, self._note) for signum in signums
    }
    return self

  def __exit__(self, *_) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def to_stop(self) -> bool:
    """Whether to stop now: to be asked once a turn, by all hosts alike."""
    self.stopping = self.stopping or self._has_come()
    return self.stopping

  def _has_come(self) -> bool:
    if self._alone:
      return self.received is not None
    from jax.experimental import multihost_utils  # Slow to import.

    self._calls += 1
    if not multihost_utils.reached_preemption_sync_point(self._calls):
      return False
    self.received = self.received or signal.SIGTERM
    return True

  def _note(self, signum: int, _) -> None:
    self.received = signum
    for other in self._before:
      signal.signal(other, signal.SIG_DFL)
    if not self._alone:
      os.kill(os.getpid(), signal.SIGTERM)  # This is how JAX tells the others.


def until(to_stop: Callable[[], bool], items: Iterable[T]) -> Iterator[T]:
  """Yields items until it is time to stop, asked before each."""
  for item in items:
    if to_stop():
      return
    yield item
