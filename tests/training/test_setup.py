"""From a config to the parts of a run."""

import jax
import numpy as np
import pytest

from flax_resnet.errors import InputError
from flax_resnet.training.setup import default_values
from tests import recipes, runs


@pytest.fixture
def config(data_dir):
  return recipes.tiniest(data_dir)


EVERY = {
  "num_steps": 17,
  "steps_per_call": 5,
  "log_every": 4,
  "eval_every": 6,
  "checkpoint_every": 100,
}


@pytest.mark.parametrize(
  ("first_step", "counts"), [(0, [4, 2, 2, 4, 4, 1]), (9, [3, 4, 1])]
)
def test_a_call_ends_where_something_is_due(config, first_step, counts):
  """And its steps have the examples that one batch a call has."""
  run = runs.make_run(config, EVERY)
  inputs = list(run.train_inputs(first_step))
  assert [count for _, count in inputs] == counts
  assert len({call["indices"].shape for call, _ in inputs}) == 1
  batches = run.train_batches(first_step)
  for call, count in inputs:
    assert call["count"] == count
    for number in range(count):
      rows = np.asarray(call["indices"])[:, number]
      batch = next(batches)
      for key in ("image", "label"):
        records = np.asarray(call["records"][key])
        np.testing.assert_array_equal(records[rows], batch[key])


def test_the_length_of_a_run(config):
  epochs = {"num_steps": None, "num_epochs": 3}
  run = runs.make_run(config, epochs)
  assert run.num_steps == round(3 * 287 / 64)
  assert run.steps_per_epoch == 287 / 64
  assert [step for step in range(1, 14) if run.due(step, 5)] == [5, 10, 13]


def test_a_run_has_a_title(config):
  assert runs.make_run(config).title == "cifar_resnet8 on digits"
  run = runs.make_run(config, {"model.shortcut": "none", "model.norm": "none"})
  assert run.title == "cifar_resnet8 shortcut=none norm=none on digits"


# What `set_up` gives to the functions of the sections: no keys of a config.
GIVEN = ("data.fill", "data.interpolation", "augment.dtype")


def test_a_config_with_its_defaults_written_down_is_the_same_one(config):
  defaults = default_values(config.to_dict())
  assert defaults["optim.momentum"] == 0.9
  assert (defaults["accumulate"], defaults["init_from"]) == (1, None)
  assert defaults["data.repeated_augmentation"] == 1
  assert defaults["loss.label_smoothing"] == 0.0
  assert defaults["model.shortcut"] == "identity"  # The network's own.
  missing = {
    key: value
    for key, value in defaults.items()
    if key not in GIVEN and not is_there(config, key)
  }
  plain, written = runs.make_run(config), runs.make_run(config, missing)
  assert plain.num_steps == written.num_steps
  state = jax.eval_shape(plain.drawn_state)
  batch = next(plain.train_batches(0))
  one, other = (
    run.train_step.lower(state, batch).as_text() for run in (plain, written)
  )
  assert one == other


def is_there(config, name):
  for key in name.split("."):
    if key not in config:
      return False
    config = config[key]
  return True


def test_an_odd_batch_that_is_not_mixed_is_fine(config):
  assert runs.make_run(config, {"batch_size": 63}).recipe.batch_size == 63


@pytest.mark.parametrize(
  "values",
  [
    {"data.early_image_sizes": ((0.5, 4),)},
    {"data.random_resized_crop": True},
    {"data.policy": "randaugment"},
  ],
)
def test_images_that_change_are_not_kept_on_the_devices(config, values):
  with pytest.raises(InputError, match="steps_per_call is 2"):
    runs.make_run(config, {"steps_per_call": 2, **values})


def test_no_more_is_evaluated_at_a_time_than_there_is(config):
  run = runs.make_run(config, {"eval_batch_size": 10**9}, devices=8)
  (batch,) = run.eval_batches()
  assert batch["image"].shape == (72, 8, 8, 1)
