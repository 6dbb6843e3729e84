"""Ctrl-C and preemption: the step in flight ends, then the run stops."""

import signal


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

  Attributes:
    received: The signal's number, or None.
  """

  received: int | None = None

  def __enter__(self) -> "StopSignals":
    self._before = {
      signum: signal.signal(signum, self._note)
      for signum in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *_) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def _note(self, signum: int, _) -> None:
    self.received = signum
    for other in self._before:
      signal.signal(other, signal.SIG_DFL)
