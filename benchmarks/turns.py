"""Contenders that take turns: each in a process of its own, one at a time.

These processes share nothing but the machine, so that no thread pool, allocator
or flag of one touches another; and they work in turn, round after round, so
that whatever slows the machine down for a while slows all of them down.
"""

from collections.abc import Callable, Mapping
import dataclasses
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
    error: Why there are none, if it could not work.
  """

  rates: list[float]
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
    process = context.Process(
      target=_play, args=(make, theirs, seconds), daemon=True
    )
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
      results[name].rates.append(connection.recv())
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
  while connection.recv():
    start = time.perf_counter()
    work(steps)
    connection.send(steps / (time.perf_counter() - start))
