"""Several processes that compute together: how they start, agree and end.

A process that loses another hangs in a collective, or is aborted by JAX, or
meets any kind of error, after up to five minutes. So each holds a connection to
process 0, which the system closes when a process ends, however it ends; what
one learns of another's end, process 0 passes on to all. Nothing is sent as long
as all are well.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import itertools
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn
import warnings

import jax
from jax._src import distributed  # The key-value store has no public name.

from flax_resnet.errors import InputError, listing, RunError

# How long processes wait for each other at the start, in seconds.
START_SECONDS = 300
# A process that has failed may have met what the others are about to meet: they
# get this long to say so themselves, in seconds.
_GRACE_SECONDS = 2
# How long a process that has failed may wait for others that are gone, and
# process 0, which holds JAX's service, for others that are about to end.
_UNWIND_SECONDS = 10
_LINGER_SECONDS = 5
_WELCOME = b"\n"
_WEEK_IN_MS = 7 * 24 * 60 * 60 * 1000

_rounds = itertools.count()
_watch: "Watch | None" = None


def join_hosts(
  report: Callable[[str], None],
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several that compute together, if it is one.

  It is, if the arguments say so, or else where SLURM or Open MPI has started
  several processes, or on a TPU VM. To be called before anything else of JAX.

  Args:
    report: function that prints the sentence with which this process ends when
      another has ended.
    coordinator: address of process 0, "HOST:PORT".
    num_processes: number of processes.
    process_id: number of this one, from 0.

  Raises:
    ValueError: if only some are given, or they do not fit together.
    InputError: if the processes do not find each other.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None):
    launcher = _launcher(os.environ)
    if launcher is None:
      return
    hint = _LAUNCHER_HINTS[launcher]
  elif None in given:
    raise ValueError(
      "--coordinator, --num_processes and --process_id belong together: give "
      "all three, or none"
    )
  elif not str(coordinator).rpartition(":")[2].isdecimal():
    raise ValueError(f"--coordinator is {coordinator}: use HOST:PORT")
  elif not 0 <= (process_id or 0) < (num_processes or 0):
    raise ValueError(
      f"--process_id is {process_id} of {num_processes}: count from 0"
    )
  else:
    hint = f"--coordinator is {coordinator}: use the address of process 0"
    if process_id == 0:  # Where the port is taken, JAX may crash.
      try:
        _listen_at(int(str(coordinator).rpartition(":")[2])).close()
      except (OSError, OverflowError) as error:
        raise InputError(
          f"--coordinator is {coordinator}, where process 0 cannot listen "
          f"({error}): use a free port"
        ) from error
  with _time_limit(report):
    try:
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=2 * START_SECONDS,  # After our own sentence.
      )
    except (RuntimeError, ValueError) as error:
      reason = str(error).partition("\n")[0].rstrip(".")
      raise InputError(
        f"the processes do not find each other ({reason}): {hint}"
      ) from error
    if several():
      _start_watch(report)


_LAUNCHER_HINTS = {
  "SLURM": "start them with srun, or a single one with SLURM_NTASKS=1 in its "
  "environment, or give --coordinator, --num_processes and --process_id",
  "Open MPI": "give --coordinator HOST:PORT, --num_processes "
  "$OMPI_COMM_WORLD_SIZE and --process_id $OMPI_COMM_WORLD_RANK",
  "TPU": "give --coordinator, --num_processes and --process_id",
}


def _launcher(environ: Mapping[str, str]) -> str | None:
  """Returns what has started several processes of a run; None for one."""
  for name, count, rank in (
    ("SLURM", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  ):
    if rank in environ and int(environ.get(count, 1)) > 1:
      return name
  # On a TPU VM a process finds the others of its slice, or that it is alone.
  tpu = importlib.util.find_spec("libtpu") and any(
    glob.glob(path) for path in ("/dev/accel*", "/dev/vfio/[0-9]*")
  )
  return "TPU" if tpu else None


def several() -> bool:
  """Whether this process computes together with others.

  Unlike `jax.process_count`, it does not start the devices, for which each
  process waits for all.
  """
  state = distributed.global_state
  return state.client is not None and state.num_processes > 1


def on_first_host(work: Callable[[], str | None]) -> str:
  """Calls `work` on process 0 and returns its text on all.

  Raises:
    InputError: on all, if `work` raises it or an OSError: no host is left
      waiting for the others.
  """
  if not several():
    return work() or ""
  client, key = _client(), f"flax_resnet/first/{next(_rounds)}"
  if distributed.global_state.process_id == 0:
    try:
      text = "text:" + (work() or "")
    except (InputError, OSError) as error:
      text = f"error:{error}"
    client.key_value_set(key, text)
  # `work` takes as long as it takes, and the watch ends this wait.
  text = client.blocking_key_value_get(key, _WEEK_IN_MS)
  kind, _, text = text.partition(":")
  if kind == "error":
    raise InputError(text)
  return text


def check_same(values: Mapping[str, Any]) -> None:
  """Checks that each process has the same values, before any is computed with.

  Args:
    values: JSON values by the names that a reader knows them by.

  Raises:
    InputError: on all, if they differ; it says which, and on which processes.
  """
  if not several():
    return
  state, prefix = distributed.global_state, f"flax_resnet/same/{next(_rounds)}"
  shown = {name: json.dumps(value) for name, value in values.items()}
  _client().key_value_set(f"{prefix}/{state.process_id}", json.dumps(shown))

  def compare():
    for other in range(1, state.num_processes):
      text = _client().blocking_key_value_get(f"{prefix}/{other}", _WEEK_IN_MS)
      theirs = json.loads(text)
      differences = [
        f"{name} is {theirs.get(name, 'absent'):.60} on process {other} and "
        f"{shown.get(name, 'absent'):.60} on process 0"
        for name in sorted(shown.keys() | theirs.keys())
        if shown.get(name) != theirs.get(name)
      ]
      if differences:
        raise InputError(
          f"{listing(differences)}: start all with the same command"
        )

  on_first_host(compare)


def _client() -> Any:
  return distributed.global_state.client


@dataclasses.dataclass(frozen=True)
class Ending:
  """How a process has ended.

  Attributes:
    process: number of the process.
    code: exit code; 0 for one that is done.
    reason: sentence that it ends with; None if it was killed.
  """

  process: int
  code: int
  reason: str | None = None

  def __str__(self) -> str:
    if self.reason is None:
      return (
        f"process {self.process} is gone: start all again, and the run "
        "continues from its last checkpoint"
      )
    return f"process {self.process} has ended: {self.reason}"


class Watch:
  """Notices how other processes end, and ends this one if they have failed.

  Args:
    process: number of this process.
    report: function that prints a sentence.
  """

  def __init__(self, process: int, report: Callable[[str], None]):
    self._process = process
    self._report = report
    self._sockets: list[socket.socket] = []
    self._connections: dict[int, socket.socket] = {}
    self._ended: set[int] = set()  # Those that have said how.
    self._own: Ending | None = None
    self._heard = threading.Event()
    self._exiting = threading.Lock()
    # A child that holds a connection would hide that its parent is gone.
    os.register_at_fork(after_in_child=self._forget)

  def serve(self, token: str) -> int:
    """Lets the other processes connect; returns the port."""
    server = _listen_at(0)
    self._sockets.append(server)

    def accept():
      while True:
        connection, _ = server.accept()
        _start_thread(self._welcome, connection, token)

    _start_thread(accept)
    return server.getsockname()[1]

  def connect(self, address: tuple[str, int], token: str) -> None:
    """Connects to process 0."""
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(f"{token} {self._process}\n".encode())
    if connection.recv(1) != _WELCOME:
      raise ConnectionError("the connection is closed")
    connection.settimeout(None)
    self._add(0, connection)
    _start_thread(self._listen, 0, connection.makefile("rb"))

  def _welcome(self, connection: socket.socket, token: str) -> None:
    lines = connection.makefile("rb")
    with contextlib.suppress(OSError):  # Of a stranger, who may do anything.
      name, _, process = lines.readline(100).partition(b" ")
      if secrets.compare_digest(name, token.encode()):
        self._add(int(process), connection)
        self._listen(int(process), lines, _WELCOME)
    connection.close()

  def _add(self, process: int, connection: socket.socket) -> None:
    # A machine that is lost closes nothing: its end is noticed in 30 s.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
      ("TCP_KEEPIDLE", 10),
      ("TCP_KEEPINTVL", 5),
      ("TCP_KEEPCNT", 4),
    ):
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._sockets.append(connection)
    self._connections[process] = connection

  def _listen(
    self, process: int, lines: Iterable[bytes], greeting: bytes = b""
  ) -> None:
    """Hears what a process says, until its end; `greeting` is said first."""
    with contextlib.suppress(OSError, ValueError):  # The last line is cut.
      self._connections[process].sendall(greeting)
      for line in lines:
        self._hear(Ending(**json.loads(line)))
    self._connections.pop(process)
    if process not in self._ended:
      self._hear(Ending(process, 1))

  def _hear(self, ending: Ending) -> None:
    self._ended.add(ending.process)
    if ending.code and not self._heard.is_set():
      self._heard.set()
      if self._process == 0:
        self._send(ending)
      _start_thread(self._follow, ending)

  def _send(self, ending: Ending) -> None:
    line = json.dumps(dataclasses.asdict(ending)).encode() + b"\n"
    for process, connection in list(self._connections.items()):
      if process != ending.process:
        with contextlib.suppress(OSError):  # Its own end is noticed as well.
          connection.sendall(line)

  def _follow(self, ending: Ending) -> None:
    """Ends this process after another, with its own sentence if it has one."""
    if ending.reason is not None:
      time.sleep(_GRACE_SECONDS)
    if self._own is not None:
      time.sleep(_UNWIND_SECONDS)
    self._exit(self._own or ending)

  def fail(self, code: int, reason: str) -> None:
    """Says to the others that, and why, this process is about to end."""
    if self._own is None:
      self._own = Ending(self._process, code, reason)
      self._send(self._own)

  def give_way(self) -> None:
    """Lets the watch end this process if another is gone.

    That shows in JAX as an error of any kind, and may do so a moment earlier.
    """
    if self._heard.wait(timeout=1):
      time.sleep(_GRACE_SECONDS + _LINGER_SECONDS)

  def finish(self) -> None:
    """Says to the others that this process has done its part."""
    self._send(Ending(self._process, 0))

  def exit(self) -> NoReturn:
    """Ends this process, which has failed."""
    assert self._own is not None
    self._exit(self._own)

  def _exit(self, ending: Ending) -> NoReturn:
    """Ends this process with a sentence, and no wait for the others by JAX."""
    with self._exiting:  # Who comes second waits for the end.
      own = ending is self._own
      self._report(str(ending.reason if own else ending))
      end = time.monotonic() + _LINGER_SECONDS
      while self._process == 0 and self._connections and time.monotonic() < end:
        time.sleep(0.02)
      sys.stdout.flush()
      os._exit(ending.code if own or ending.code == 2 else 1)

  def _forget(self) -> None:
    for each in self._sockets:
      with contextlib.suppress(OSError):
        os.close(each.detach())


def _listen_at(port: int) -> socket.socket:
  """Returns a socket at a port of all addresses; 0 for any free port."""
  both = socket.has_dualstack_ipv6()
  return socket.create_server(
    ("", port),
    family=socket.AF_INET6 if both else socket.AF_INET,
    dualstack_ipv6=both,
    backlog=1024,
  )


def _start_thread(target: Callable[..., None], *args: Any) -> None:
  threading.Thread(target=target, args=args, daemon=True).start()


def _start_watch(report: Callable[[str], None]) -> None:
  global _watch
  state = distributed.global_state
  _delay_aborts()
  _watch = Watch(state.process_id, report)
  key = "flax_resnet/watch"
  if state.process_id == 0:
    token = secrets.token_hex()
    _client().key_value_set(key, f"{_watch.serve(token)} {token}")
  else:
    address = _client().blocking_key_value_get(key, START_SECONDS * 1000)
    port, token = address.split()
    host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
    try:
      _watch.connect((host, int(port)), token)
    except OSError as error:
      warnings.warn(
        f"process {state.process_id} cannot reach process 0 at {host}:{port} "
        f"({error}): when another process is lost, it notices minutes later",
        stacklevel=2,
      )
  check_same({"--num_processes": state.num_processes})


@contextlib.contextmanager
def _time_limit(report: Callable[[str], None]) -> Iterator[None]:
  """Ends this process with a sentence if the others do not come.

  JAX would abort it.
  """

  def end():
    report(
      f"not all processes have come within {START_SECONDS} s: look at what the "
      "others say, and start all again"
    )
    os._exit(1)

  timer = threading.Timer(START_SECONDS, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _delay_aborts() -> None:
  """Makes an abort of this process wait for six seconds.

  When process 0 is gone, a thread of JAX aborts all others, at once (JAX 0.10
  and 0.12 offer a callback, but only C++ can be called). The watch notices the
  same, and needs a moment to end this process with a sentence. The C library's
  `sleep` is the handler, which needs no Python: it is called with the number of
  the signal, 6. Then the abort goes on.
  """
  if sys.platform != "win32":
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


@contextlib.contextmanager
def failures_shared() -> Iterator[None]:
  """Says to the other processes at once when its block fails.

  What is then closed on the way out may wait for them.
  """
  try:
    yield
  except Exception as error:
    if _watch is not None:
      reason = str(error)
      if not isinstance(error, (InputError, RunError)):
        _watch.give_way()
        reason = f"{type(error).__name__}: {error}"
      _watch.fail(2 if isinstance(error, InputError) else 1, reason)
    raise


def give_way() -> None:
  """Ends this process with a sentence if another is gone, or returns."""
  if _watch is not None:
    _watch.give_way()


def finish() -> None:
  """Says to the other processes, if any, that this one has done its part."""
  if _watch is not None:
    _watch.finish()


def exit_after_failure(reason: str, code: int) -> None:
  """Ends this process with a sentence, and says it to the others, if any.

  JAX would wait for the other processes at the end, and then abort.
  """
  if _watch is not None:
    _watch.fail(code, reason)
    _watch.exit()
