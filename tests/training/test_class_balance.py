"""Classes that weigh more, or come more often, in whole runs."""

import numpy as np
import pytest

from flax_resnet.errors import InputError
from flax_resnet.training import train
from tests import recipes, runs

COUNTS = (40, 9, 3)


@pytest.fixture(scope="module")
def config(data_dir, tmp_path_factory):
  """Twelve steps on 52 images of three classes of unequal size."""
  path = tmp_path_factory.mktemp("arrays") / "uneven.npz"
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(np.arange(3), COUNTS))
  images = rng.integers(0, 60, (52, 8, 8, 1)) + 80 * labels[:, None, None, None]
  arrays = {"images": images.astype(np.uint8), "labels": labels}
  np.savez(
    path,
    **{
      f"{split}_{k}": v
      for split in ("train", "test")
      for k, v in arrays.items()
    },
  )
  return recipes.changed(
    recipes.tiniest(data_dir),
    {
      "batch_size": 16,
      "num_steps": 12,
      "log_every": 3,
      "eval_every": 6,
      "checkpoint_every": 6,
      "model.num_classes": 3,
      "data.name": "npz",
      "data.root": str(path),
      "data.train_split": "train",
      "data.eval_split": "test",
    },
  )


def labels_of_steps(run, first_step, count):
  batches = run.train_batches(first_step)
  return [next(batches)["label"].tolist() for _ in range(count)]


def test_classes_are_sampled_equally_often(config):
  run = runs.make_run(config, {"data.balanced_sampling": True, "num_steps": 39})
  drawn = labels_of_steps(run, 0, 39)  # 12 times 52.
  np.testing.assert_array_equal(np.bincount(np.concatenate(drawn)), 208)
  assert labels_of_steps(run, 17, 5) == drawn[17:22]


def test_a_killed_run_ends_with_the_same_bits(
  config, tmp_path, mesh, monkeypatch
):
  config = recipes.changed(
    config,
    {
      "data.balanced_sampling": True,
      "loss.class_weights": "balanced",
      "loss.focal_gamma": 2.0,
    },
  )
  train(config, tmp_path / "whole", mesh)
  for stop in (2, 7):
    runs.train_to(config, tmp_path / "parts", mesh, stop, monkeypatch)
  train(config, tmp_path / "parts", mesh)
  whole, parts = (tmp_path / name for name in ("whole", "parts"))
  runs.assert_same_bits(runs.saved_state(whole), runs.saved_state(parts))
  assert runs.rows_of(whole) == runs.rows_of(parts)


def test_balanced_is_what_its_numbers_are(config):
  """N / (classes count), of the records to train on."""
  numbers = tuple(52 / (3 * count) for count in COUNTS)
  one, other = (
    runs.after_steps(runs.make_run(config, {"loss.class_weights": weights}), 2)
    for weights in ("balanced", numbers)
  )
  runs.assert_same_bits(one, other)


def test_balanced_sampling_is_the_same_by_several_steps_a_call(config):
  values = {
    "data.balanced_sampling": True,
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 12),
  }
  one, several = (
    runs.after_steps(runs.make_run(config, {**values, "steps_per_call": n}), 12)
    for n in (1, 4)
  )
  runs.assert_same_bits(one.params, several.params)


def test_a_class_without_records_has_no_balanced_weight(config):
  values = {"loss.class_weights": "balanced", "data.train_split": "train[:1]"}
  with pytest.raises(
    InputError, match=r"config.loss: class_weights is balanced"
  ):
    runs.make_run(config, {**values, "batch_size": 1})


def test_weights_that_are_all_doubled_change_nothing(config):
  """The loss of a step is divided by the mean weight of its targets."""
  numbers = np.array([1.0, 2.0, 0.5])
  one, other = (
    runs.after_steps(
      runs.make_run(config, {"loss.class_weights": tuple(factor * numbers)}), 2
    )
    for factor in (1, 4)
  )
  assert np.ptp(one.params["head"]["bias"]) > 1e-3
  runs.assert_same_bits(one, other)
