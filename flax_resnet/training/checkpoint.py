"""Checkpoints of a run, by Orbax: the latest few and the best.

A checkpoint is a folder that takes its name, the step, once it is complete:

  state/    the arrays of the `TrainState`, and their digests
  about/    what a reader needs besides: config, class names, image shape
  metrics/  the row of the step, if there was one
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from flax_resnet import hosts, storage
from flax_resnet.errors import InputError, reported_as, RunError
from flax_resnet.models.variables import mismatch, named_leaves, unstack
from flax_resnet.training.state import TrainState
from flax_resnet.weights import files

# Of the arrays: what they are, and the merged index of all their parts.
_PARTS = ("_METADATA", "manifest.ocdbt")


class DigestingHandler(ocp.StandardCheckpointHandler):
  """Orbax's handler of arrays, which also writes their digests."""

  @classmethod
  def typestr(cls) -> str:
    """Returns the name in the checkpoint: Orbax's own handler can read it."""
    return ocp.StandardCheckpointHandler.typestr()

  def finalize(self, directory: Any) -> None:
    """Writes the digests, on one host: all have written, nothing is public."""
    super().finalize(directory)
    storage.write_digests(pathlib.Path(directory))


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, for runs of several hosts."""

  def reached_preemption(self, step: int) -> bool:
    """Returns False; `StopSignals` is the only one to ask JAX.

    JAX lets the hosts agree on the number that comes after the last one that
    each has asked with. Orbax asks with the step, `StopSignals` with the number
    of its calls, which is larger: it would never see what they agree on.
    """
    del step
    return False

  def _wait_for_checkpointers(self) -> None:
    """Ends all hosts if this one cannot write.

    In this thread of Orbax's an error waits for the other hosts before it is
    raised, and they wait for this one, for twenty minutes.
    """
    if not hosts.several():
      return super()._wait_for_checkpointers()
    try:
      with _write_errors_reported(self.directory):
        super()._wait_for_checkpointers()
    except RunError as error:
      hosts.exit_after_failure(str(error), 1)
      raise  # The hosts do not watch each other: `join_hosts` was not called.


class Checkpoints:
  """The checkpoints of a run, written in the background.

  The first is read back whole, as whoever predicts reads it; of the others it
  is checked that every file is there.

  Args:
    directory: folder of the checkpoints, which is made if it is not there.
    keep: number of the latest to keep; the best by `storage.score` stays too.
    flush: function that returns once what is complete is where it is kept, if
      that is not the folder; default none.
    shared: whether the folder is the same one for all hosts; default True. If
      not, each reads its own, and the first alone writes: the state is the same
      on all.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    keep: int,
    flush: Callable[[], object] = lambda: None,
    shared: bool = True,
  ):
    self._directory = directory
    self._flush = flush
    self._shared = shared
    self._unchecked = None  # The newest one, which may be being written.
    self._read_back = False
    latest = preservation_policy.LatestN(keep)
    # Not NaN, which Orbax would take for the best.
    best = preservation_policy.BestN(get_metric_fn=storage.score, n=1)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    among = ocp.options.MultiprocessingOptions()
    if not shared:  # Of each host's own manager, the others know nothing.
      host = jax.process_index()
      among = ocp.options.MultiprocessingOptions(host, {host}, f"host{host}")
    handler = DigestingHandler(multiprocessing_options=among)
    registry.add("state", ocp.args.StandardSave, handler)
    registry.add("state", ocp.args.StandardRestore, handler)
    about = ocp.JsonCheckpointHandler(multiprocessing_options=among)
    registry.add("about", ocp.args.JsonSave, about)
    directory.mkdir(parents=True, exist_ok=True)
    self._manager = _Manager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [latest, best]
        ),
        # Without it, Orbax forgets the metrics when the run is restarted.
        best_fn=storage.score,
        create=False,
        multiprocessing_options=among,
      ),
      handler_registry=registry,
    )

  def latest_step(self) -> int | None:
    """Returns the step of the latest complete checkpoint, if there is one."""
    return self._manager.latest_step()

  def about(self, step: int) -> dict[str, Any]:
    """Returns the part of a checkpoint that is not arrays.

    Raises:
      InputError: if it cannot be read.
    """
    path = self._directory / str(step) / "about" / "metadata"
    with reported_as(str(path)):
      return storage.read_json(path)

  def save(
    self, state: TrainState, metrics: Mapping[str, float], about: Any
  ) -> None:
    """Starts to write a checkpoint; a later call, or `close`, waits for it.

    Args:
      state: state of the run.
      metrics: row of the step; empty if there is none.
      about: JSON values that a reader of the checkpoint needs besides.

    Raises:
      RunError: if this checkpoint, or the one before it, cannot be written.
    """
    with _write_errors_reported(self._directory):
      self._directory.stat()  # Orbax would make it anew, were it gone.
    self._finish()
    arrays = dict(vars(state))
    if not self._shared and jax.process_count() > 1:
      if jax.process_index() > 0:
        return
      # Of a jax.Array that others have as well, Orbax wants theirs.
      arrays = jax.device_get(arrays)
    with _write_errors_reported(self._directory):
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(arrays),
          about=ocp.args.JsonSave(about),
        ),
        metrics=dict(metrics),
      )
      self._unchecked = self._directory / str(int(state.step))
      if not self._read_back:
        self._manager.wait_until_finished()
        self._check_written()
        self._check_reads_as(state)
        self._read_back = True

  def _check_written(self) -> None:
    """Raises OSError unless all of the newest complete checkpoint is there."""
    folder, self._unchecked = self._unchecked, None
    if folder is None or jax.process_index() > 0:
      return
    for name in ("about/metadata", *(f"state/{name}" for name in _PARTS)):
      if not (folder / name).is_file():
        raise OSError(f"{folder / name} was not written")
    if missing := storage.missing_file(folder / "state"):
      raise OSError(f"{folder / 'state' / missing} is gone")

  def _check_reads_as(self, state: TrainState) -> None:
    """Raises OSError unless the checkpoint of a state reads as this state."""
    if jax.process_index() > 0:
      return
    found = named_leaves(
      files.read_checkpoint(self._directory / str(int(state.step)))
    )
    wanted = named_leaves(unstack(jax.device_get(state.eval_variables)))
    for name, array in wanted.items():
      if name not in found or found[name].tobytes() != array.tobytes():
        raise OSError(f"{name} was not read back as it was written")

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Returns the state of a checkpoint, on the devices that `like` is on.

    Raises:
      InputError: if its arrays are not those of `like`, or cannot be read.
    """
    folder = self._directory / str(step)
    wanted = dict(vars(like))
    try:
      stored = self._manager.item_metadata(step)["state"].tree
      if stored.keys() != wanted.keys():
        raise InputError(
          f"checkpoint {folder} was written by another version of flax_resnet, "
          "whose runs this one cannot continue: predict, evaluate and export "
          "still read it; to train on, give config.init_from and another "
          "--workdir"
        )
      if problems := mismatch(_shapes(wanted), _shapes(stored)):
        raise InputError(
          f"checkpoint {folder} is not of this model and optimizer ({problems}"
          "): use the config that wrote it, or another --workdir"
        )
      target = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
      )
    except InputError:
      raise
    except Exception as error:  # TensorStore's, Python's, JAX's.
      raise InputError(
        f"checkpoint {folder} cannot be read: {_summary(error)}: remove it, "
        "and the run goes on from the one before"
      ) from error
    return like.replace(**restored["state"])

  def wait(self) -> None:
    """Waits for the checkpoint that is being written."""
    self._finish()

  def _finish(self) -> None:
    with _write_errors_reported(self._directory):
      self._manager.wait_until_finished()
      self._check_written()
    self._flush()

  def close(self) -> None:
    """Waits for the checkpoint that is being written, and ends the writing."""
    with _write_errors_reported(self._directory):
      self._manager.close()
      self._check_written()


@contextlib.contextmanager
def _write_errors_reported(directory: Any) -> Iterator[None]:
  """Raises a RunError for what Orbax's threads have met with."""
  try:
    yield
  except Exception as error:
    hosts.give_way()  # To what the loss of one makes of a write.
    cause = _root_cause(error)
    if jax.process_count() > 1 and isinstance(
      cause, (TimeoutError, jax.errors.JaxRuntimeError)
    ):
      # Orbax waits for the others, and ends with either where one is gone.
      raise jax.errors.JaxRuntimeError(str(cause)) from error
    raise RunError(
      f"no checkpoint can be written to {directory}: "
      f"{_summary(error)}; those that are complete stay as they are: once it "
      "can, the same command continues"
    ) from error


def quarantine_damaged(directory: pathlib.Path) -> str:
  """Renames the checkpoints that are newer than the newest sound one.

  Args:
    directory: checkpoints of a run; if all are damaged it stays as it is.

  Returns:
    A line that names them; "" if none is damaged.

  Raises:
    InputError: if there are checkpoints and none is sound.
  """
  sound, damaged = storage.newest_sound_checkpoint(directory)
  if not damaged:
    return ""
  line = storage.describe_damage(damaged)
  if sound is None:
    raise InputError(f"{line}, and there is no other to go on with")
  for folder in damaged:
    names = (f"damaged-{folder.name}-{n}" for n in itertools.count(2))
    target = directory / f"damaged-{folder.name}"
    while target.exists():
      target = directory / next(names)
    folder.rename(target)
  return f"{line}: set aside as damaged-…, which can be deleted"


def _shapes(tree: Any) -> dict[str, str]:
  """Returns "float32[3, 3, 16, 16]" by name, the parameters first.

  What else does not fit mostly repeats what is wrong with them.
  """
  leaves = named_leaves(tree)
  names = sorted(leaves, key=lambda name: not name.startswith("params/"))
  return {n: f"{leaves[n].dtype}{list(leaves[n].shape)}" for n in names}


def _root_cause(error: BaseException) -> BaseException:
  while (cause := error.__cause__ or error.__context__) is not None:
    error = cause
  return error


def _summary(error: BaseException) -> str:
  """Returns a line of at most 200 characters on the cause of an error."""
  error = _root_cause(error)
  # TensorStore's errors end with what was wrong, before all its settings.
  text = " ".join(f"{type(error).__name__}: {error}".split())
  text = text.partition(" [tensorstore")[0]
  return text if len(text) < 200 else f"…{text[-200:]}"
