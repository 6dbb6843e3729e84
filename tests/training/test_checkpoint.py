import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import sharding
from flax_resnet.training import faults, InputError, metrics, RunError
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.state import TrainState
from tests.drawing import normal


@pytest.fixture
def state(mesh):
  draw = lambda *shape: normal(sum(shape), shape)
  state = TrainState(
    step=jnp.int32(3),
    params={"stem": {"kernel": draw(3, 3, 1, 4)}, "head": {"bias": draw(10)}},
    batch_stats={"stem": {"mean": draw(4)}},
    opt_state=({"stem": draw(4)}, ()),
    sums=metrics.zeros(),
    faults=faults.none(),
  )
  return jax.device_put(state, sharding.replicated(mesh))


def save(directory, state, scores, keep=2):
  checkpoints = Checkpoints(directory, keep)
  for step, score in scores.items():
    row = {} if score is None else {"val/top1": score}
    at = state.replace(step=jnp.int32(step))
    checkpoints.save(at, row, {"note": "x"})
  checkpoints.close()


def kept(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path, state):
  save(tmp_path, state, {3: 0.5})
  checkpoints = Checkpoints(tmp_path, 2)
  assert checkpoints.latest_step() == 3
  blank = jax.tree.map(jnp.zeros_like, state)
  restored = checkpoints.restore(3, blank)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_latest_and_the_best_stay_also_after_a_restart(tmp_path, state):
  save(tmp_path, state, {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None})
  assert kept(tmp_path) == [2, 4, 5]
  save(tmp_path, state, {6: 0.1, 7: 0.8})
  assert kept(tmp_path) == [2, 6, 7]


def test_faults_are_kept_once_there_are_any(tmp_path, state):
  faulty = state.replace(faults=state.faults.replace(count=jnp.int32(2)))
  save(tmp_path, state, {3: 0.5})
  save(tmp_path, faulty, {4: 0.5})
  checkpoints = Checkpoints(tmp_path, 2)
  blank = jax.tree.map(jnp.zeros_like, state)
  before, after = (checkpoints.restore(step, blank) for step in (3, 4))
  checkpoints.close()
  assert (int(before.faults.count), int(after.faults.count)) == (0, 2)
  names = [
    set(
      json.loads((tmp_path / f"{step}/state/_METADATA").read_text())[
        "tree_metadata"
      ]
    )
    for step in (3, 4)
  ]
  assert {name.split("'")[1] for name in names[1] - names[0]} == {"faults"}


@pytest.mark.parametrize(
  ("hosts", "told"), [(1, RunError), (2, jax.errors.JaxRuntimeError)]
)
def test_a_wait_without_end_is_that_of_a_host_that_is_gone(
  tmp_path, state, monkeypatch, hosts, told
):
  """Of one host it is the disk's: Python has one error for both."""
  checkpoints = Checkpoints(tmp_path, 2)

  def save(*args, **kwargs):
    raise TimeoutError("waited for nothing")

  monkeypatch.setattr(checkpoints._manager, "save", save)
  monkeypatch.setattr(jax, "process_count", lambda: hosts)
  with pytest.raises(told, match="waited for nothing"):
    checkpoints.save(state, {}, {})
  monkeypatch.undo()
  checkpoints.close()


def test_an_empty_folder_has_no_step(tmp_path):
  checkpoints = Checkpoints(tmp_path / "new", 2)
  assert checkpoints.latest_step() is None
  checkpoints.close()


def test_a_checkpoint_of_another_model_is_told_by_its_arrays(tmp_path, state):
  save(tmp_path, state, {3: 0.5})
  other = state.replace(
    params={"stem": {"kernel": jnp.zeros((3, 3, 3, 4))}, "neck": jnp.zeros(2)}
  )
  checkpoints = Checkpoints(tmp_path, 2)
  with pytest.raises(InputError) as error:
    checkpoints.restore(3, other)
  checkpoints.close()
  message = str(error.value)
  assert "params/neck is missing" in message
  assert "params/head/bias is unexpected" in message
  assert (
    "params/stem/kernel is float32[3, 3, 1, 4] instead of float32[3, 3, 3, 4]"
  ) in message
  assert "\n" not in message


def test_a_checkpoint_moves_to_other_devices(tmp_path, state):
  save(tmp_path, state, {3: 0.5})
  mesh = sharding.make_mesh(jax.devices()[:4])
  target = jax.device_put(
    jax.tree.map(jnp.zeros_like, jax.device_get(state)),
    sharding.replicated(mesh),
  )
  checkpoints = Checkpoints(tmp_path, 2)
  restored = checkpoints.restore(3, target)
  checkpoints.close()
  kernel = restored.params["stem"]["kernel"]
  assert len(kernel.sharding.device_set) == 4
  np.testing.assert_array_equal(kernel, state.params["stem"]["kernel"])
