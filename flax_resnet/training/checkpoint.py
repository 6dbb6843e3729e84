"""Checkpoints: the latest few and the best, whole or not there at all."""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from flax_resnet.training import digests
from flax_resnet.training.schema import InputError, RunError
from flax_resnet.training.state import TrainState


def exists(directory: pathlib.Path) -> bool:
  """Whether there is a complete checkpoint; `Checkpoints` makes the folder."""
  return directory.is_dir() and any(
    path.name.isdecimal() for path in directory.iterdir()
  )


class Checkpoints:
  """The checkpoints of a run, written in the background by Orbax.

  A step's folder appears under its name once it is complete.

  Args:
    directory: Made if it is not there.
    keep: How many of the latest to keep; the best by `val/top1` stays as well.
  """

  def __init__(self, directory: pathlib.Path, keep: int):
    self._directory = directory
    latest = preservation_policy.LatestN(keep)
    best = preservation_policy.BestN(get_metric_fn=_top1, n=1)
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [latest, best]
        ),
        # Without it, Orbax forgets the metrics when the run is restarted.
        best_fn=_top1,
      ),
      handler_registry=_handlers(),
    )

  def latest_step(self) -> int | None:
    """Returns the step of the latest complete checkpoint, if there is one."""
    return self._manager.latest_step()

  def save(
    self, state: TrainState, metrics: Mapping[str, float], about: Any
  ) -> None:
    """Starts to write a checkpoint; a later call, or `close`, waits for it.

    Args:
      state: What to save.
      metrics: Of the evaluation at this step; empty if there was none.
      about: What a reader of the checkpoint needs besides; plain values.
    """
    arrays = dict(vars(state))
    if not state.faults.count:  # As in a run of before there were any.
      del arrays["faults"]
    with self._writing():
      self._directory.stat()  # Orbax would make it anew, were it gone.
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
        ),
        metrics=dict(metrics),
      )

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Returns a checkpoint's state, laid out over the devices as `like` is.

    Raises:
      InputError: When its arrays are not those of `like`, or cannot be read.
    """
    try:
      return self._restore(step, like)
    except InputError:
      raise
    except Exception as error:  # TensorStore's, Python's, JAX's.
      raise InputError(
        f"checkpoint {self._directory / str(step)} cannot be read: "
        f"{_shown(error)}: remove it, and the run goes on from the one before"
      ) from error

  def wait(self) -> None:
    """Waits for the checkpoint that is being written."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits likewise, and ends the writing."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Tells in a sentence what Orbax's threads have met with."""
    try:
      yield
    except Exception as error:
      cause = _cause(error)
      if jax.process_count() > 1 and isinstance(
        cause, (TimeoutError, jax.errors.JaxRuntimeError)
      ):
        # Orbax waits for the others, and ends with either where one is gone.
        raise jax.errors.JaxRuntimeError(str(cause)) from error
      raise RunError(
        f"no checkpoint can be written to {self._directory}: {_shown(error)}; "
        "those that are complete stay as they are: once it can, the same "
        "command continues"
      ) from error

  def _restore(self, step: int, like: TrainState) -> TrainState:
    stored = self._manager.item_metadata(step)["state"].tree
    wanted = dict(vars(like))
    if "faults" not in stored:
      del wanted["faults"]
    self._check(step, _shapes(stored), _shapes(wanted))
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
    restored = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )["state"]
    return like.replace(**restored)

  def _check(self, step: int, stored: dict, wanted: dict) -> None:
    problems = []
    # Parameters first: the rest mostly repeats what is wrong with them.
    names = stored.keys() | wanted.keys()
    for name in sorted(names, key=lambda n: (not n.startswith("params"), n)):
      if name not in stored:
        problems.append(f"{name} is missing")
      elif name not in wanted:
        problems.append(f"{name} is unexpected")
      elif stored[name] != wanted[name]:
        problems.append(f"{name} is {stored[name]} instead of {wanted[name]}")
    if problems:
      more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
      raise InputError(
        f"checkpoint {self._directory / str(step)} is not of this model and "
        f"optimizer: {', '.join(problems[:5])}{more}: use the config that "
        "wrote it, or another --workdir"
      )


def _cause(error: BaseException) -> BaseException:
  """Returns the error that the others follow from."""
  while (cause := error.__cause__ or error.__context__) is not None:
    error = cause
  return error


def _shown(error: BaseException) -> str:
  error = _cause(error)
  # TensorStore's errors end with what was wrong, before all its settings.
  text = " ".join(f"{type(error).__name__}: {error}".split())
  text = text.partition(" [tensorstore")[0]
  return text if len(text) < 200 else f"…{text[-200:]}"


def _handlers() -> Any:
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  state, about = digests.DigestingHandler(), ocp.JsonCheckpointHandler()
  for name, handler, kinds in (
    ("state", state, (ocp.args.StandardSave, ocp.args.StandardRestore)),
    ("about", about, (ocp.args.JsonSave, ocp.args.JsonRestore)),
  ):
    for kind in kinds:
      registry.add(name, kind, handler)
  return registry


def _top1(metrics: Mapping[str, float]) -> float:
  return metrics.get("val/top1", -1.0)


def _shapes(tree: Any) -> dict[str, str]:
  """Returns "float32[3, 3, 16, 16]" by name: "params/stem/conv/kernel"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{leaf.dtype}{list(leaf.shape)}"
    )
    for path, leaf in leaves
  }
