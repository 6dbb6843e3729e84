"""Checkpoints: whole, or not there; damaged ones are set aside."""

import inspect
import math
import os
import random
import shutil
import types

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import hosts, sharding, storage
from flax_resnet.training import InputError, metrics, RunError, train
from flax_resnet.training.checkpoint import (
  Checkpoints,
  quarantine_damaged,
)
from flax_resnet.training.state import NonFinite, TrainState
from flax_resnet.weights import files, load_pretrained, WeightsError
from tests import recipes
from tests.drawing import normal
from tests.runs import assert_same_bits, files_of, rows_of, saved_state


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


def test_only_the_loop_asks_for_the_step_to_stop_at(
  tmp_path, state, monkeypatch
):
  """Orbax would ask with its own numbers, and a signal could be lost."""
  asked = []
  monkeypatch.setattr(
    multihost_utils,
    "reached_preemption_sync_point",
    lambda number: asked.append(number),
  )
  save(tmp_path, state, {1: None, 2: None})
  assert not asked


def test_hosts_that_do_not_watch_each_other_hear_of_a_failed_write(
  tmp_path, state, monkeypatch
):
  """As where somebody else has called `jax.distributed.initialize`."""

  def fail(directory):
    raise OSError("no space")

  monkeypatch.setattr(hosts, "several", lambda: True)
  monkeypatch.setattr(storage, "write_digests", fail)
  with pytest.raises(RunError, match="no checkpoint can be .*no space"):
    save(tmp_path, state, {1: None})


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
  checkpoints._read_back = True  # Past the checks: it is no `TrainState`.
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
    if storage.damage(tmp_path / "3"):
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
  assert storage.damage(tmp_path / "3") is None


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
  before = files_of(workdir)
  with pytest.raises(InputError, match="damaged"):
    train(config, workdir, mesh)
  assert files_of(workdir) == before


def empty(folder):
  """Leaves the folder, as a full disk may."""
  shutil.rmtree(folder)
  folder.mkdir()


@pytest.mark.parametrize("harm", [damage_arrays, empty])
def test_weights_are_those_of_the_newest_sound_checkpoint(
  tmp_path, finished, harm
):
  run = tmp_path / "run"
  shutil.copytree(finished, run)
  before = files.read_checkpoint(run / "checkpoints" / "2")
  harm(run / "checkpoints" / "4")
  with pytest.warns(UserWarning, match=r"4 \(state/.*: that of step 2 is used"):
    assert_same_bits(files.read_checkpoint(run), before)
  with pytest.warns(UserWarning, match="that of step 2"):
    loaded = load_pretrained(run)
  assert_same_bits(loaded.variables, before)
  harm(run / "checkpoints" / "2")
  with pytest.raises(WeightsError, match="damaged.*and there is no other"):
    load_pretrained(run)


def test_a_checkpoint_alone_says_all_of_its_run(tmp_path, finished):
  """Network, class names and preprocessing; also far from its workdir."""
  whole = load_pretrained(finished)
  shutil.copytree(finished / "checkpoints" / "4", tmp_path / "alone")
  alone = load_pretrained(tmp_path / "alone")
  assert_same_bits(alone.variables, whole.variables)
  assert alone.class_names == whole.class_names == tuple("0123456789")
  assert alone.preprocessing == whole.preprocessing
  assert alone.model == whole.model


def test_a_checkpoint_is_chosen_by_step_or_score(tmp_path, state):
  directory = tmp_path / "checkpoints"
  save(directory, state, {1: 0.3, 2: 0.9, 3: 0.5, 4: None})
  for which, step in (("newest", 4), ("best", 2), ("3", 3)):
    assert files.find_checkpoint(tmp_path, which) == directory / str(step)
  with pytest.raises(WeightsError, match="'9' in .* one of 2, 3, 4"):
    files.find_checkpoint(tmp_path, "9")


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_not_the_best(tmp_path, state, score):
  directory = tmp_path / "checkpoints"
  save(directory, state, {1: 0.3, 2: 0.9, 3: score, 4: 0.5, 5: 0.4})
  assert storage.checkpoint_steps(directory) == [5, 4, 2]
  assert files.find_checkpoint(tmp_path, "best") == directory / "2"


# Of the last byte, Python makes what no UTF-8 has.
NAMES = (
  "a b",
  "a]b",
  "100%",
  "그림",
  "~x",
  "a'b\"c",
  "x#y",
  "-rf",
  "{a}",
)
REFUSED = (
  "a[x]",
  "[!x]",
  "a*b",
  "a?b",
  "a\\b",
  "c:",
  "gs:",
  os.fsdecode(b"a\xff"),
)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_in_folders_of_any_name(tmp_path, state, name):
  for folder in (tmp_path / name, tmp_path / name / "inside"):
    storage.check_can_hold_checkpoint(folder)
    save(folder / "checkpoints", state, {3: 0.5})
    found = files.read_checkpoint(folder)
    assert_same_bits(found, jax.device_get(state.variables))


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_for_which_orbax_has_another_meaning_is_refused(
  tmp_path, name
):
  for folder in (tmp_path / name, tmp_path / name / "inside"):
    with pytest.raises(InputError, match="choose another folder"):
      storage.check_can_hold_checkpoint(folder)


@pytest.mark.parametrize("lost", ["state/manifest.ocdbt", "about/metadata"])
def test_a_checkpoint_that_was_not_written_whole_ends_the_run(
  tmp_path, state, lost
):
  """Whatever the reason; the first is read back as well."""
  checkpoints = Checkpoints(tmp_path, 2)
  checkpoints.save(state, {}, {})
  checkpoints.save(state.replace(step=jnp.int32(4)), {}, {})
  checkpoints._manager.wait_until_finished()
  (tmp_path / "4" / lost).unlink()
  with pytest.raises(RunError, match=lost):
    checkpoints.close()


def test_the_first_checkpoint_is_read_back(tmp_path, state, monkeypatch):
  checkpoints = Checkpoints(tmp_path, 2)
  read = files.read_checkpoint
  monkeypatch.setattr(
    files, "read_checkpoint", lambda p: jax.tree.map(np.zeros_like, read(p))
  )
  with pytest.raises(RunError, match="batch_stats/.* was not read back"):
    checkpoints.save(state, {}, {})
  monkeypatch.undo()
  checkpoints.close()
