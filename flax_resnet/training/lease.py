"""The right to write to a workdir in a bucket, of one run at a time."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from flax_resnet import bucket
from flax_resnet.bucket import BucketError
from flax_resnet.errors import InputError, RunError

# Folder of a workdir in which leases are.
FOLDER = "lease"
# One that is not renewed for so long has run out, and it is renewed so often.
SECONDS = 60
RENEW_SECONDS = 10
# By its owner's clock, which may be another one, it has run out long ago.
_OLD_SECONDS = 600


class Lease:
  """A lease of a workdir, held in a `with` block.

  It is an object `lease/N` with its owner. Whoever finds no lease, or one that
  was given back or not renewed for `SECONDS`, writes `lease/N+1`, on the
  condition that it is not there: of several, one succeeds. The highest number
  counts, and stays when its owner ends; so one who was thought dead, and is
  not, sees at its next write that it was taken over.

  Clocks need not agree: it has run out when it did not change for so long while
  it was looked at.

  Args:
    folder: folder of the workdir.
  """

  def __init__(self, folder: bucket.Folder):
    self._folder = folder
    self._before: tuple[int, dict[str, Any]] = (0, {})  # That is not held.
    self._number = 0
    self._token = secrets.token_hex(8)
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def wait(self) -> None:
    """Waits until no other run holds it, up to `SECONDS`.

    Raises:
      InputError: if another run does, and renews it.
    """
    number, found = self._before = self._newest()
    if not _holds(found) or time.time() - found["time"] > _OLD_SECONDS:
      return
    _report(
      f"{self._folder.url} is in use by {found['owner']}, or was when that was "
      f"killed: waiting up to {SECONDS:g} s for a sign of life"
    )
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
      time.sleep(min(1.0, SECONDS / 10))
      now = self._newest()
      if not _holds(now[1]):
        self._before = now
        return
      if now != (number, found):
        raise self._in_use(now[1])

  def __enter__(self) -> "Lease":
    """Takes it, as the one after that which `wait` has found free.

    Raises:
      InputError: if another run was quicker.
    """
    number, found = self._before
    self._number = number + 1
    if not self._folder.create(self._name(), self._contents()):
      raise self._in_use(self._newest()[1])
    if _holds(found):
      _report(f"{found['owner']} is gone: its lease is taken over")
    old = (n for n in self._numbers() if n < self._number)
    self._folder.remove([f"{FOLDER}/{n}" for n in old])
    self._ended.clear()
    self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    assert self._thread is not None
    self._ended.set()
    self._thread.join()
    self._folder.patience = 0  # Without an answer it runs out by itself.
    with contextlib.suppress(BucketError, RunError):
      self.check()
      self._folder.write(self._name(), self._contents(released=True))

  def check(self) -> None:
    """Raises RunError if another run has taken over."""
    number, found = self._newest()
    if (number, found.get("token")) != (self._number, self._token):
      owner = found.get("owner", "another run")
      raise RunError(
        f"{owner} has taken over {self._folder.url}, as this run was not heard "
        f"of for {SECONDS:g} s: nothing more is written"
      )

  def _keep_renewing(self) -> None:
    while not self._ended.wait(RENEW_SECONDS):
      # The next copy meets the same error, and is what reports it.
      with contextlib.suppress(OSError):
        self._folder.write(self._name(), self._contents())

  def _name(self) -> str:
    return f"{FOLDER}/{self._number}"

  def _contents(self, released: bool = False) -> bytes:
    values = {
      "owner": f"process {os.getpid()} on {socket.gethostname()}",
      "token": self._token,
      "time": time.time(),
      "released": released,
    }
    return json.dumps(values).encode()

  def _numbers(self) -> list[int]:
    names = self._folder.sizes(FOLDER)
    ends = (name.removeprefix(f"{FOLDER}/") for name in names)
    return sorted(int(end) for end in ends if end.isdecimal())

  def _newest(self) -> tuple[int, dict[str, Any]]:
    """Returns the number and the contents of the one that counts; 0 if none."""
    numbers = self._numbers()
    if not numbers:
      return 0, {}
    data = self._folder.read(f"{FOLDER}/{numbers[-1]}")
    try:
      found = json.loads(data or b"{}")
      found = {**found, "time": float(found["time"]), "owner": found["owner"]}
    except (KeyError, TypeError, ValueError):
      found = {}  # Nobody's.
    return numbers[-1], found

  def _in_use(self, found: dict[str, Any]) -> InputError:
    return InputError(
      f"workdir {self._folder.url} is in use by another run "
      f"({found.get('owner', 'just started')}): stop that one, or choose "
      "another --workdir"
    )


def _report(line: str) -> None:
  print(line, flush=True)  # The log is not open yet.


def _holds(found: dict[str, Any]) -> bool:
  return bool(found) and not found.get("released")
