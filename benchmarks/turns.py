"""Contenders that take turns: each in a process of its own, one at a time.

These processes share nothing but the machine, so that no thread pool, allocator
or flag of one touches another; and they work in turn, round after round, so
that whatever slows the machine down for a while slows all of them down.
"""

import collections
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import glob
import multiprocessing
import os
import statistics
import time

# Does that many steps, and returns when they are done.
Work = Callable[[int], object]


@dataclasses.dataclass
class Result:
  """What a contender did.

  Attributes:
    rates: Steps a second, one number a round.
    processor: Seconds of processor time for a step, of the contender and the
      processes that it has started, one number a round.
    error: Why there are none, if it could not work.
  """

  rates: list[float]
  processor: list[float] = dataclasses.field(default_factory=list)
  error: str = ""

  @property
  def median(self) -> float:
    return statistics.median(self.rates)

  def ratio(self, other: "Result") -> float:
    """Median over the rounds of this rate over the other's."""
    pairs = zip(self.rates, other.rates, strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def take_turns(
  makers: Mapping[str, Callable[[], Work]], rounds: int, seconds: float
) -> dict[str, Result]:
  """Returns the rates of all contenders.

  Args:
    makers: Name to a picklable function that makes the work, called in the
      contender's own process: it imports what it needs.
    rounds: Turns of each contender.
    seconds: Length of a turn, about.
  """
  # On a GPU, JAX would take most of the memory from those that come after.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  context = multiprocessing.get_context("spawn")
  results = {name: Result([]) for name in makers}
  playing = {}
  for name, make in makers.items():
    ours, theirs = context.Pipe()
    # Not a daemon, which may have no worker processes.
    process = context.Process(target=_play, args=(make, theirs, seconds))
    process.start()
    theirs.close()
    # One after the other: compiling takes all cores.
    if error := _receive(ours):
      results[name].error = error
    else:
      playing[name] = ours
  for _ in range(rounds):
    for name, connection in playing.items():
      connection.send(True)
      rate, processor = connection.recv()
      results[name].rates.append(rate)
      results[name].processor.append(processor)
  for connection in playing.values():
    connection.send(False)
  return results


def _receive(connection) -> str:
  try:
    return connection.recv()
  except EOFError:
    return "its process died"


def _play(make: Callable[[], Work], connection, seconds: float) -> None:
  """In the contender's process: one turn for each message."""
  try:
    work = make()
    work(3)  # Compiles, fills caches.
    start = time.perf_counter()
    work(3)
    steps = max(1, round(3 * seconds / (time.perf_counter() - start)))
  except Exception as error:  # Of another framework: whatever it raises.
    first_line = str(error).partition("\n")[0]
    connection.send(f"{type(error).__name__}: {first_line}")
    return
  connection.send("")
  while _asked(connection):
    start, used = time.perf_counter(), processor_seconds()
    work(steps)
    seconds_taken = time.perf_counter() - start
    used = processor_seconds() - used
    connection.send((steps / seconds_taken, used / steps))


def _asked(connection) -> bool:
  try:
    return connection.recv()
  except EOFError:  # Whoever asked is gone.
    return False


def processor_seconds() -> float:
  """Returns the processor time of this process and all that come from it.

  0 where there is no /proc to read it from.
  """
  times, children = {}, collections.defaultdict(list)
  for path in glob.glob("/proc/[0-9]*/stat"):
    with contextlib.suppress(OSError):  # It has just ended.
      with open(path) as file:
        pid, _, rest = file.read().partition(" ")
      fields = rest.rpartition(")")[2].split()
      children[int(fields[1])].append(int(pid))
      times[int(pid)] = sum(map(int, fields[11:15]))
  ticks, waiting = 0, [os.getpid()]
  while waiting:
    pid = waiting.pop()
    ticks += times.get(pid, 0)
    waiting += children[pid]
  return ticks / os.sysconf("SC_CLK_TCK")
