"""Checkpoints: whole, or not there; damaged ones are set aside."""

import inspect
import random
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import sharding, storage
from flax_resnet.training import InputError, metrics, RunError, train
from flax_resnet.training.checkpoint import (
  Checkpoints,
  damage,
  quarantine_damaged,
)
from flax_resnet.training.state import NonFinite, TrainState
from flax_resnet.weights import files, WeightsError
from tests import recipes
from tests.drawing import normal
from tests.runs import assert_same_bits, rows_of, saved_state


@pytest.fixture(scope="module")
def state():
  draw = lambda *shape: normal(sum(shape), shape)
  state = TrainState(
    step=jnp.int32(3),
    params={"stem": {"kernel": draw(3, 3, 1, 4)}, "head": {"bias": draw(10)}},
    batch_stats={"stem": {"mean": draw(4)}},
    opt_state=({"stem": draw(4)}, ()),
    average={},
    sums=metrics.zeros(),
    nonfinite=NonFinite.none(),
  )
  return sharding.replicate(state, sharding.make_mesh(jax.devices()[:1]))


def save(directory, state, scores, keep=2):
  checkpoints = Checkpoints(directory, keep)
  for step, score in scores.items():
    row = {} if score is None else {"val/top1": score}
    at = state.replace(step=jnp.int32(step))
    checkpoints.save(at, row, {"note": "x"})
  checkpoints.close()


def restore(directory, step, like):
  checkpoints = Checkpoints(directory, 2)
  try:
    return checkpoints.restore(step, like)
  finally:
    checkpoints.close()


def blank(state):
  return jax.tree.map(jnp.zeros_like, state)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_state_comes_back_bit_for_bit(tmp_path, state, averaged):
  if averaged:
    state = state.replace(average={"params": state.params, "batch_stats": {}})
  save(tmp_path, state, {3: 0.5})
  checkpoints = Checkpoints(tmp_path, 2)
  assert checkpoints.latest_step() == 3
  restored = checkpoints.restore(3, blank(state))
  checkpoints.close()
  assert_same_bits(restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_a_checkpoint_moves_to_other_devices(tmp_path, state):
  save(tmp_path, state, {3: 0.5})
  mesh = sharding.make_mesh(jax.devices()[:4])
  restored = restore(tmp_path, 3, sharding.replicate(blank(state), mesh))
  kernel = restored.params["stem"]["kernel"]
  assert len(kernel.sharding.device_set) == 4
  np.testing.assert_array_equal(kernel, state.params["stem"]["kernel"])


def test_the_latest_and_the_best_stay_also_after_a_restart(tmp_path, state):
  save(tmp_path, state, {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None})
  assert storage.checkpoint_steps(tmp_path) == [5, 4, 2]
  save(tmp_path, state, {6: 0.1, 7: 0.8})
  assert storage.checkpoint_steps(tmp_path) == [7, 6, 2]


def test_an_empty_folder_has_no_step(tmp_path):
  checkpoints = Checkpoints(tmp_path / "new", 2)
  assert checkpoints.latest_step() is None
  checkpoints.close()


def test_a_checkpoint_of_another_model_is_told_by_its_arrays(tmp_path, state):
  save(tmp_path, state, {3: 0.5})
  other = state.replace(
    params={"stem": {"kernel": jnp.zeros((3, 3, 3, 4))}, "neck": jnp.zeros(2)}
  )
  with pytest.raises(InputError) as error:
    restore(tmp_path, 3, other)
  assert (
    "(missing: params/neck; unexpected: params/head/bias; different: "
    "params/stem/kernel float32[3, 3, 1, 4] instead of float32[3, 3, 3, 4])"
  ) in str(error.value)


def test_a_checkpoint_of_another_version_says_so(tmp_path, state):
  """Those of 0.1.0 had no `nonfinite` and no `average`, or `faults`."""
  old = dict(vars(state))
  del old["average"]
  old["faults"] = old.pop("nonfinite")
  checkpoints = Checkpoints(tmp_path, 2)
  # Past the check of types: it is no `TrainState`.
  save = inspect.unwrap(Checkpoints.save)
  save(checkpoints, types.SimpleNamespace(**old), {}, {})
  checkpoints.close()
  with pytest.raises(InputError, match="another version"):
    restore(tmp_path, 3, state)
  assert_same_bits(files.read_checkpoint(tmp_path / "3"), state.variables)


@pytest.mark.parametrize(
  ("hosts", "error"), [(1, RunError), (2, jax.errors.JaxRuntimeError)]
)
def test_a_wait_without_end_is_that_of_a_host_that_is_gone(
  tmp_path, state, monkeypatch, hosts, error
):
  """Of one host it is the disk's: Python has one error for both."""
  checkpoints = Checkpoints(tmp_path, 2)

  def save(*args, **kwargs):
    raise TimeoutError("waited for nothing")

  monkeypatch.setattr(checkpoints._manager, "save", save)
  monkeypatch.setattr(jax, "process_count", lambda: hosts)
  with pytest.raises(error, match="waited for nothing"):
    checkpoints.save(state, {}, {})
  monkeypatch.undo()
  checkpoints.close()


def flip(content, rng):
  content = bytearray(content)
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(content)


DAMAGE = {
  "flipped": flip,
  "cut": lambda content, rng: content[: rng.randrange(len(content))],
  "empty": lambda content, rng: b"",
  "gone": lambda content, rng: None,
}


def contents(directory):
  return {
    path: path.read_bytes() for path in directory.rglob("*") if path.is_file()
  }


def damaged_files(checkpoint, flips):
  """Yields the name of each file, and how it is damaged at the moment."""
  rng = random.Random(0)
  for path in sorted(
    filter(lambda path: path.is_file(), checkpoint.rglob("*"))
  ):
    content = path.read_bytes()
    for kind in ["flipped"] * flips + ["cut", "empty", "gone"]:
      damaged = DAMAGE[kind](content, rng)
      path.unlink()
      if damaged is not None:
        path.write_bytes(damaged)
      yield path.relative_to(checkpoint).as_posix(), kind
      path.write_bytes(content)


@pytest.mark.parametrize(
  "flips", [2, pytest.param(100, marks=pytest.mark.deep)]
)
def test_damage_is_noticed_or_does_no_harm(tmp_path, state, flips):
  """All over all files: what is not noticed gives the same bits."""
  save(tmp_path, state, {3: 0.5})
  noticed, harmless = set(), set()
  for case in damaged_files(tmp_path / "3", flips):
    if damage(tmp_path / "3"):
      noticed.add(case)
    else:
      checkpoints = Checkpoints(tmp_path, 2)
      assert checkpoints.latest_step() == 3, case
      assert_same_bits(checkpoints.restore(3, blank(state)), state)
      checkpoints.close()
      harmless.add(case)
  arrays = {name for name, _ in noticed if name.startswith("state/ocdbt")}
  assert len(arrays) >= 2
  assert not [
    name
    for name, _ in harmless
    if name.startswith("state/") and not name.endswith("commit_success.txt")
  ]
  assert damage(tmp_path / "3") is None


def damage_arrays(folder):
  """Flips a bit of the arrays."""
  files = [path for path in (folder / "state").rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(flip(largest.read_bytes(), random.Random(0)))


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_checkpoints_after_the_newest_sound_one_are_set_aside(tmp_path, state):
  save(tmp_path, state, {1: None, 2: None, 3: None, 4: None}, keep=4)
  assert quarantine_damaged(tmp_path) == ""
  damage_arrays(tmp_path / "1")  # It is not looked at.
  damage_arrays(tmp_path / "3")
  (tmp_path / "4" / "state" / storage.DIGESTS).unlink()
  (tmp_path / "damaged-4").mkdir()  # As it may happen again.
  (tmp_path / "damaged-4-2").mkdir()
  line = quarantine_damaged(tmp_path)
  assert f"{tmp_path / '3'} (state/" in line
  assert f"{tmp_path / '4'} (state/{storage.DIGESTS} is missing)" in line
  assert names(tmp_path) == [
    *("1", "2", "damaged-3", "damaged-4", "damaged-4-2", "damaged-4-3")
  ]


@pytest.fixture(scope="module")
def config(data_dir):
  config = recipes.one_block(data_dir)
  config.update(num_steps=4, checkpoint_every=2, keep_checkpoints=2)
  return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  """A finished run with checkpoints at 2 and 4."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  train(config, workdir, sharding.make_mesh(jax.devices()[:1]))
  return workdir


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
  config, tmp_path, mesh, finished, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  damage_arrays(workdir / "checkpoints" / "4")
  train(config, workdir, mesh)
  out, err = capsys.readouterr()
  assert f"\ncheckpoint is damaged: {workdir / 'checkpoints' / '4'} (" in out
  assert "\ncontinues after step 2\n" in out
  assert err == ""
  assert (workdir / "checkpoints" / "damaged-4").is_dir()
  assert_same_bits(saved_state(workdir), saved_state(finished))
  assert rows_of(workdir) == rows_of(finished)


def test_a_run_of_nothing_but_damage_is_not_begun_anew(
  config, tmp_path, mesh, finished
):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  for step in (2, 4):
    damage_arrays(workdir / "checkpoints" / str(step))
  before = contents(workdir)
  with pytest.raises(InputError, match="damaged"):
    train(config, workdir, mesh)
  assert contents(workdir) == before


def test_damaged_weights_are_not_predicted_from(tmp_path, finished):
  shutil.copytree(finished, tmp_path / "run")
  files.read_checkpoint(tmp_path / "run")
  damage_arrays(tmp_path / "run" / "checkpoints" / "4")
  with pytest.raises(WeightsError, match="damaged"):
    files.read_checkpoint(tmp_path / "run")
