"""How commands read their flags and end."""

import argparse
from collections.abc import Iterator
import contextlib
import io
import logging
import os
import pathlib
import signal
import sys
import types
from typing import Any, NoReturn
import warnings

from flax_resnet.training.interrupt import Stopped
from flax_resnet.training.schema import InputError, RunError

# Characters that are printed of an error; a value in it may have millions.
MAX_SENTENCE = 1_500
# What TensorStore's threads meet after Orbax has failed with another error.
_LATE = "Event loop is closed"
_PACKAGE = pathlib.Path(__file__).parent
_formatwarning = warnings.formatwarning


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


def keep_what_is_compiled() -> None:
  """Lets JAX keep compiled programs for the next start, unless it has a place.

  They are in ~/.cache/flax_resnet/xla (or below XDG_CACHE_HOME); JAX's own
  JAX_COMPILATION_CACHE_DIR names another folder, and
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
  """
  import jax

  config: Any = jax.config  # Its options are attributes at run time only.
  if config.jax_compilation_cache_dir is not None:
    return
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folder = pathlib.Path(caches, "flax_resnet", "xla")
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # A home that cannot be written: compile anew each time.
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def exits() -> Iterator[None]:
  """Ends the process with one sentence and a code where the work cannot go on.

  1 when a run has failed or another host is gone, 2 after a wrong input, 130
  after Ctrl-C, 143 after SIGTERM.
  """
  _leave_the_telling_to_us()
  # A file name may hold what is no text, and is printed nevertheless.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  try:
    yield
  except InputError as error:
    _tell(error)
    sys.exit(2)
  except RunError as error:
    _tell(error)
    _fail()
  except Stopped as stop:
    print(stop, file=sys.stderr)
    sys.exit(stop.exit_code)
  except BrokenPipeError:
    # The reader of a pipe has seen enough, such as `head`. What Python still
    # has to flush goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except Exception as error:
    if (sentence := _sentence(error)) is None:
      raise
    _tell(sentence)
    _fail()
  except KeyboardInterrupt:
    print("interrupted: nothing was in progress", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def _tell(error: object) -> None:
  print(f"error: {_line(error)}", file=sys.stderr, flush=True)


def _line(what: object) -> str:
  """Returns what is said as one line, whatever names of files stand in it."""
  line = printable(" ".join(str(what).split()))
  return line if len(line) <= MAX_SENTENCE else f"{line[:MAX_SENTENCE]}…"


def _warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  line: str | None = None,
) -> str:
  """Formats a warning: this package's is a line for who runs a command."""
  if pathlib.Path(filename).is_relative_to(_PACKAGE):
    return f"warning: {_line(message)}\n"
  return _formatwarning(message, category, filename, lineno, line)


def _fail() -> NoReturn:
  """Ends with 1."""
  if _is_one_of_several():
    # JAX would wait for the other hosts at the end, and then abort.
    sys.stdout.flush()
    os._exit(1)
  sys.exit(1)


def _sentence(error: Exception) -> str | None:
  """Returns what to say of an error that is nobody's mistake, if it is one."""
  first = (str(error).splitlines() or [type(error).__name__])[0][:200]
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return (
      f"there is not enough memory ({first}): a run takes less with a smaller "
      "config.batch_size, config.accumulate=2 or config.model.remat=True"
    )
  if _is_one_of_several():
    import jax

    if isinstance(error, jax.errors.JaxRuntimeError):
      return (
        f"another host is gone ({first}): start all again, and the run "
        "continues from its last checkpoint"
      )
  return None


def _leave_the_telling_to_us() -> None:
  """Silences what libraries say beside the sentence that is ours."""
  # TFDS and Orbax warn of what they then do rightly: a set to be prepared, a
  # half-written checkpoint to be removed; and Orbax logs the errors of its
  # threads, which it raises as well.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  sys.unraisablehook = _unraisable
  # Pillow of odd files, which are then read rightly or told in one sentence.
  logging.getLogger("PIL").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", module=r"PIL\.")
  warnings.formatwarning = _warning
  # Python's tracker, a process, of shared memory that Grain frees a moment too
  # late, and which it then frees.
  ours, others = "ignore:resource_tracker", os.environ.get("PYTHONWARNINGS")
  if not others:
    os.environ["PYTHONWARNINGS"] = ours
  elif ours not in others:  # Else it would grow with every call in a process.
    os.environ["PYTHONWARNINGS"] = f"{others},{ours}"
  # Orbax, where it fails, of what it had begun with, and what it had not.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")


def printable(text: str) -> str:
  """Returns text with escapes for new lines and for what steers a terminal.

  Names of files and of classes come from others, and may hold anything.
  """
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _unraisable(told: Any) -> None:
  """Python's own, without what Orbax had begun when something else failed."""
  late = str(told.exc_value) == _LATE
  if not late and not isinstance(told.object, types.CoroutineType):
    sys.__unraisablehook__(told)


def _is_one_of_several() -> bool:
  """Whether this process shares its run with others."""
  if "jax" not in sys.modules:
    return False
  import jax

  return jax.distributed.is_initialized() and jax.process_count() > 1
