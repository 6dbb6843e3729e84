"""How commands read their flags and end."""

import argparse
from collections.abc import Iterator
import contextlib
import logging
import signal
import sys
from typing import NoReturn

from flax_resnet.training.interrupt import Stopped
from flax_resnet.training.schema import InputError


class Parser(argparse.ArgumentParser):
  """A parser whose errors are InputErrors."""

  def error(self, message: str) -> NoReturn:
    raise InputError(f"{message}: see {self.prog} --help")

  def parse_with_overrides(self) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags, and what stands behind "--config." in others."""
    flags, others = self.parse_known_args()
    prefix = "--config."
    for other in others:
      if not other.startswith(prefix):
        self.error(f"{other} is not a flag")
    return flags, [other.removeprefix(prefix) for other in others]


@contextlib.contextmanager
def exits() -> Iterator[None]:
  """Ends the process with one sentence and a code where the work cannot go on.

  2 after a wrong input, 130 after Ctrl-C, 143 after SIGTERM.
  """
  # TFDS and Orbax warn of what they then do rightly: a set to be prepared, a
  # half-written checkpoint to be removed.
  logging.getLogger("absl").setLevel(logging.ERROR)
  try:
    yield
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except Stopped as stop:
    print(stop, file=sys.stderr)
    sys.exit(stop.exit_code)
  except KeyboardInterrupt:
    print("interrupted: nothing was in progress", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
