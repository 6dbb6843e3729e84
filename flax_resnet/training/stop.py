"""What ends a run before its last step: a signal, or patience.

At Ctrl-C and preemption the step in flight ends, then the run stops.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import math
import os
import signal
import threading
from typing import TypeVar

from etils import epy

with epy.lazy_imports():  # Slow to import, and one host needs none of it.
  from jax.experimental import multihost_utils

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
  """SIGINT and SIGTERM within a `with` block; a second one ends at once.

  Signals come to the main thread of a process alone: in another one, as some
  tools run many trainings, this hears none.

  Of several hosts, a signal to one stops all, after the same step: there JAX
  catches SIGTERM, and agrees with the others on the step.

  Attributes:
    received: number of the signal, or None.
    stopping: whether `should_stop` has returned True, on all hosts.

  Args:
    hosts: number of hosts; default 1.
  """

  def __init__(self, hosts: int = 1):
    self.received: int | None = None
    self.stopping = False
    self._hosts = hosts
    self._calls = 0

  def __enter__(self) -> "StopSignals":
    signums = [signal.SIGINT]
    if self._hosts == 1:
      signums.append(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
      signums = []
    self._before = {
      signum: signal.signal(signum, self._handle) for signum in signums
    }
    return self

  def __exit__(self, *_) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def should_stop(self) -> bool:
    """Returns whether to stop now.

    Every host calls it equally often: they agree on the number of a call.
    """
    if not self.stopping and self._hosts > 1:
      self._calls += 1
      if multihost_utils.reached_preemption_sync_point(self._calls):
        self.received = self.received or signal.SIGTERM
        self.stopping = True
    elif self.received is not None:
      self.stopping = True
    return self.stopping

  def _handle(self, signum: int, _) -> None:
    self.received = signum
    for other in self._before:
      signal.signal(other, signal.SIG_DFL)
    if self._hosts > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other hosts.


def until_stopped(
  should_stop: Callable[[], bool], items: Iterable[T]
) -> Iterator[T]:
  """Yields items until `should_stop`, which is called before each, is True."""
  for item in items:
    if should_stop():
      return
    yield item


def out_of_patience(scores: Sequence[float], patience: int | None) -> bool:
  """Whether so many of the last scores are no better than one before them.

  It depends on nothing but the scores, so that a run that continues ends where
  one does that nothing has stopped.

  Args:
    scores: scores of the evaluations of a run, in order; NaN is no better than
      anything.
    patience: number of evaluations without a better score that end a run; None
      for any number.
  """
  if patience is None:
    return False
  best, waited = -math.inf, 0
  for score in scores:
    better = score > best
    best, waited = (score, 0) if better else (best, waited + 1)
  return waited >= patience
