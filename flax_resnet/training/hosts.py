"""What the first of several hosts does for all of them."""

from collections.abc import Callable

import jax
import numpy as np

from flax_resnet.training.schema import InputError

_ROOM = 4096  # Bytes of what is said: all hosts must know how many come.


def first(work: Callable[[], str | None]) -> str:
  """Does something on process 0, and returns what it says on all.

  Raises:
    InputError: On all, when `work` raises it or an OSError: none is left
      waiting for the others.
  """
  if jax.process_count() == 1:
    return work() or ""
  from jax.experimental import multihost_utils  # Slow to import.

  said = ""
  if jax.process_index() == 0:
    try:
      said = "said:" + (work() or "")
    except (InputError, OSError) as error:
      said = f"error:{error}"
  sent = np.zeros(_ROOM, np.uint8)
  text = np.frombuffer(said.encode()[:_ROOM], np.uint8)
  sent[: len(text)] = text
  told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
  kind, _, text = told.rstrip(b"\0").decode(errors="ignore").partition(":")
  if kind == "error":
    raise InputError(text)
  return text
