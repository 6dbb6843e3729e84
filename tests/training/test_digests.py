"""Damaged checkpoints: noticed, named, and the one before goes on."""

import random
import shutil

import jax
import numpy as np
import pytest

from flax_resnet.insight.trained import Trained
from flax_resnet.training import digests, InputError, train
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.run import prepare
from flax_resnet.weights import files, integrity, WeightsError
from tests.training.test_loop import assert_same_bits, final_state


@pytest.fixture
def config(config):
  config.update(num_steps=4, checkpoint_every=2, keep_checkpoints=2)
  return config


@pytest.fixture
def whole(config, tmp_path, mesh):
  """A finished run with checkpoints at 2 and 4."""
  train(config, tmp_path / "whole", mesh)
  return tmp_path / "whole"


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


def cases(checkpoint, flips):
  """Yields (path, what it was, what it is now), the file being so."""
  rng = random.Random(0)
  for path in sorted(checkpoint.rglob("*")):
    if path.is_file():
      content = path.read_bytes()
      for kind in ["flipped"] * flips + ["cut", "empty", "gone"]:
        damaged = DAMAGE[kind](content, rng)
        path.unlink()
        if damaged is not None:
          path.write_bytes(damaged)
        yield path.relative_to(checkpoint), kind
        path.write_bytes(content)


@pytest.mark.parametrize(
  "flips", [2, pytest.param(100, marks=pytest.mark.slow)]
)
def test_damage_is_noticed_or_does_no_harm(config, mesh, whole, flips):
  """All over all files: what is not noticed gives the same bits."""
  like = prepare(config.to_dict(), mesh).initial_state()
  good = final_state(config, whole, mesh)
  noticed, harmless = set(), set()
  for path, kind in cases(whole / "checkpoints" / "4", flips):
    if digests.damage(whole / "checkpoints" / "4"):
      noticed.add((str(path), kind))
      continue
    checkpoints = Checkpoints(whole / "checkpoints", 2)
    assert checkpoints.latest_step() == 4, (path, kind)
    assert_same_bits(jax.device_get(checkpoints.restore(4, like)), good)
    checkpoints.close()
    harmless.add((str(path), kind))
  arrays = {path for path, _ in noticed if path.startswith("state/ocdbt")}
  assert len(arrays) >= 2
  assert not [
    path
    for path, _ in harmless
    if path.startswith("state/") and not path.endswith((".txt", integrity.NAME))
  ]


def damage(workdir, *steps):
  """Flips a bit in the arrays."""
  for step in steps:
    folder = workdir / "checkpoints" / str(step) / "state"
    data = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(flip(data.read_bytes(), random.Random(0)))


def test_the_checkpoint_before_a_damaged_one_goes_on(
  config, tmp_path, mesh, whole, capsys
):
  good = final_state(config, whole, mesh)
  for name in ("damaged-4", "damaged-4-2"):  # As it may happen again.
    damage(whole, 4)
    capsys.readouterr()
    train(config, whole, mesh)
    out, err = capsys.readouterr()
    assert "\ncheckpoint is damaged: " in out
    assert f"{whole / 'checkpoints' / '4'} (state/" in out
    assert "\ncontinues after step 2\n" in out
    assert err == ""
    assert (whole / "checkpoints" / name).is_dir()
    assert_same_bits(final_state(config, whole, mesh), good)


def test_a_run_of_nothing_but_damage_is_left_as_it_is(config, mesh, whole):
  damage(whole, 2)
  shutil.rmtree(whole / "checkpoints" / "4" / "state")
  before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
  with pytest.raises(InputError) as error:
    train(config, whole, mesh)
  message = str(error.value)
  assert "4 (state/manifest.ocdbt is missing), " in message
  assert message.endswith("and there is no other to go on with")
  after = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
  assert after == before


# TensorStore's threads still speak of what was not read, as `command` knows.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_older_checkpoint_without_digests_is_read(config, mesh, whole):
  good = final_state(config, whole, mesh)
  folder = whole / "checkpoints" / "4" / "state"
  (folder / integrity.NAME).unlink()
  assert digests.damage(folder.parent) is None
  jax.tree.map(
    np.testing.assert_array_equal, final_state(config, whole, mesh), good
  )
  # What is wrong with it is found by reading it.
  (folder / "manifest.ocdbt").write_bytes(b"nonsense")
  with pytest.raises(InputError, match="4 cannot be read: "):
    train(config, whole, mesh)


def test_a_flipped_array_is_noticed_by_all_who_read_a_run(config, whole, mesh):
  """Prediction, evaluation, a warm start; `inspect`, which reads the state."""
  largest = max(
    (whole / "checkpoints" / "4" / "state").rglob("*"),
    key=lambda path: path.stat().st_size if path.is_file() else 0,
  )
  files.read_checkpoint(whole)
  largest.write_bytes(flip(largest.read_bytes(), random.Random(0)))
  with pytest.raises(WeightsError, match="4/state is damaged: .* as it was"):
    files.read_checkpoint(whole)
  with pytest.raises(InputError, match="4 is damaged: .* as it was written"):
    Trained.load(whole)
