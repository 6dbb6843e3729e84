"""Runs in tests: stopping one, its last state, its rows, its bits."""

from collections.abc import Mapping
import json
import pathlib
import signal
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flax_resnet import sharding, storage
from flax_resnet.training import loop, Stopped, train
from flax_resnet.training.setup import Run, set_up
from flax_resnet.training.state import TrainState
from tests.recipes import changed

# The rest of a row is repeatable.
CLOCKS = ("seconds", "images_per_second", "memory")


def mesh_of(devices: int) -> Mesh:
  """Returns a mesh of the first so many devices."""
  return sharding.make_mesh(jax.devices()[:devices])


def make_run(
  config: ConfigDict, values: Mapping[str, Any] | None = None, devices: int = 1
) -> Run:
  """Returns the run of a config with other values of some keys."""
  return set_up(changed(config, values or {}).to_dict(), mesh_of(devices))


def first_state(run: Run) -> TrainState:
  """Returns the state that the seed draws, on the devices of the run."""
  return sharding.replicate(run.drawn_state(), run.mesh)


def after_steps(
  run: Run, num_steps: int, state: TrainState | None = None
) -> TrainState:
  """Returns the state after so many steps; None for those of a drawn one."""
  state = first_state(run) if state is None else state
  inputs = run.train_inputs(int(state.step))
  while state.step < num_steps:
    state = run.train_step(state, next(inputs)[0])
  return state


def saved_state(workdir: pathlib.Path) -> TrainState:
  """Returns the arrays of the newest checkpoint, as NumPy arrays."""
  directory = workdir.absolute() / "checkpoints"
  step = storage.checkpoint_steps(directory)[0]
  with ocp.StandardCheckpointer() as checkpointer:
    arrays = checkpointer.restore(directory / str(step) / "state")
  return TrainState(**jax.device_get(arrays))


def train_to(
  config: ConfigDict,
  workdir: pathlib.Path,
  mesh: Mesh,
  stop: int,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """Trains until step `stop` is done, then sends SIGTERM."""
  advance, done = loop.Log.advance, []

  def count(self, steps):
    advance(self, steps)
    done.append(steps)
    if self._first_step + sum(done) == stop:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Log, "advance", count)
    with pytest.raises(Stopped) as stopped:
      train(config, workdir, mesh)
  assert stopped.value.exit_code == 143
  assert f"after step {stop}" in str(stopped.value)


def files_of(workdir: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """Returns the contents of all files in a folder and below."""
  paths = (path for path in workdir.rglob("*") if path.is_file())
  return {path: path.read_bytes() for path in paths}


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a run without the times it took."""

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  return [
    {
      key: value
      for key, value in json.loads(line, parse_constant=refuse).items()
      if key not in CLOCKS
    }
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def assert_same_bits(a: Any, b: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, a, b)
