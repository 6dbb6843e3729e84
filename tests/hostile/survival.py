"""Inputs without number: what each may do, and how it must end."""

from collections.abc import Callable, Iterator
import contextlib
import io
import logging
import os
import pathlib
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings

import jaxtyping
import pytest

from flax_resnet.cli import flags

SECONDS = 5  # The most that an input may take of the processor.
MEMORY = 2**31  # Bytes, the most that the process may grow by.
# A short version in every run of the suite, and the long one.
COUNTS = [300, pytest.param(20_000, marks=pytest.mark.slow)]
_TIMERS = (signal.SIGALRM, signal.SIGPROF)
# What nobody sees: Python shows these where they are raised by `__main__`.
_UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning)
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.link")
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
# It prints by itself; Pillow has no switch for it.
_LIBTIFF = re.compile(
  rb"(tempfile\.tif|_?TIFF\w+|JPEGLib|MissingRequired|\w+(Decode|Tag)\w*): "
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
  """Records what is executed, and written outside of a folder.

  Python's audit hooks cannot be taken away: there is one for all tests.
  """

  inside: str | None = None
  seen: tuple[str, ...] = ()

  def __call__(self, event: str, arguments: tuple) -> None:
    if self.inside is None:
      return
    if event in _FORBIDDEN or event == "socket.connect":
      self.seen += (f"{event} {arguments!r:.200}",)
    elif event in _CHANGES or (
      event == "open" and (arguments[2] or 0) & _WRITES
    ):
      self._check(event, arguments[0])

  def _check(self, event: str, path: object) -> None:
    if isinstance(path, (str, bytes, os.PathLike)):
      where = os.path.realpath(os.fsdecode(path))
      if not where.startswith((str(self.inside), "/dev/")):
        self.seen += (f"{event} {where}",)


_watch = Watch()
sys.addaudithook(_watch)


class TooSlow(BaseException):
  """Not an Exception, which what is tested might catch."""


class _Warnings(logging.Handler):
  """Records what would be printed as a warning."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.lines.append(f"{record.name}: {record.getMessage()}")


def survive(
  folder: pathlib.Path,
  count: int,
  attempt: Callable[[random.Random], Callable[[], object]],
) -> dict[str, int]:
  """Makes inputs and uses them; fails with every kind of failure there was.

  An input is accepted without a word, or refused as a command refuses it: by
  one sentence and exit code 2.

  Args:
    folder: the only place where something may be written.
    count: number of inputs.
    attempt: function that makes an input, and returns what uses it.

  Returns:
    The numbers of inputs: {"accepted": ..., "refused": ...}.
  """
  ends, failures, slowest = {"accepted": 0, "refused": 0}, {}, 0.0
  before, start = _memory(), time.monotonic()
  with _limits(), _types_unchecked(), _descriptor_2() as printed:
    for seed in range(count):
      try:
        call, begin = attempt(random.Random(seed)), time.monotonic()
        # Of the processor: others may be busy with it. Or of waiting.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
        ends[_end(folder, call, printed)] += 1
        slowest = max(slowest, time.monotonic() - begin)
      except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
          raise
        failures.setdefault(_kind(error), []).append((seed, error))
  took = time.monotonic() - start
  grown = _memory() - before
  print(
    f"{count:,} inputs, {took:.0f} s, slowest {slowest:.2f} s, "
    f"+{grown >> 20} MiB, {ends}"
  )
  kinds = [
    f"{len(found)} times, first with seed {found[0][0]}: {kind}\n"
    + "".join(traceback.format_exception(found[0][1])[-6:])
    for kind, found in failures.items()
  ]
  assert not kinds, "\n".join([f"{len(kinds)} kinds of failures", *kinds])
  assert grown < MEMORY
  return ends


def _end(
  folder: pathlib.Path, call: Callable[[], object], printed: Callable[[], bytes]
) -> str:
  """Returns how a command would end that does this."""
  err, log, code = io.StringIO(), _Warnings(), 0
  logging.getLogger().addHandler(log)
  _watch.seen, _watch.inside = (), os.path.realpath(folder)
  try:
    with (
      contextlib.redirect_stderr(err),
      warnings.catch_warnings(record=True) as warned,
    ):
      warnings.resetwarnings()
      try:
        with flags.exit_codes():
          call()
      except SystemExit as end:
        code = end.code
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _watch.inside = None
    logging.getLogger().removeHandler(log)
  seen = [w for w in warned if not issubclass(w.category, _UNSEEN)]
  assert not seen, f"a warning: {seen[0].message}"
  assert not log.lines, f"a log: {log.lines[0]}"
  if (line := printed()) and not _LIBTIFF.match(line):
    raise AssertionError(f"on stderr: {line!r}")
  assert not _watch.seen, f"it did {_watch.seen[0]}"
  text = err.getvalue()
  assert code in (0, 2), f"exit code {code}"
  if not code:
    assert not text, f"on stderr: {text!r}"
    return "accepted"
  assert text.startswith("error: "), text
  assert text.endswith("\n"), text
  assert text[:-1].isprintable(), repr(text)
  assert len(text) < 2000, f"a sentence of {len(text)} characters"
  return "refused"


def _kind(error: BaseException) -> str:
  """Returns where in the package an error comes from."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if "flax_resnet" in f.filename] or frames
  last = ours[-1]
  line = f"{pathlib.Path(last.filename).name}:{last.lineno}"
  text = str(error)[:40] if isinstance(error, AssertionError) else ""
  return f"{type(error).__name__} at {line} {text}"


@contextlib.contextmanager
def _types_unchecked() -> Iterator[None]:
  """Switches off the checks of types, which only tests have."""
  jaxtyping.config.update("jaxtyping_disable", True)
  try:
    yield
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def _descriptor_2() -> Iterator[Callable[[], bytes]]:
  """Yields a function: what C code printed as errors since its last call."""
  with tempfile.TemporaryFile() as file:

    def printed() -> bytes:
      text = os.pread(file.fileno(), 500, 0)
      if text:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        os.ftruncate(file.fileno(), 0)
      return text

    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield printed
    finally:
      os.dup2(kept, 2)
      os.close(kept)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
  """Ends what takes too long, or memory without bounds."""

  def stop(*_):
    raise TooSlow("an input took too long")

  before = [signal.signal(number, stop) for number in _TIMERS]
  limits = resource.getrlimit(resource.RLIMIT_AS)
  # What is reserved already: XLA and PyTorch reserve much that they never use.
  with open("/proc/self/statm") as file:
    reserved = int(file.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (reserved + 2 * MEMORY, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)
    for number, handler in zip(_TIMERS, before, strict=True):
      signal.signal(number, handler)


def _memory() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
