"""inspect --study: experiments on the networks that runs and weights hold."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.cli import inspect as verb
from flax_resnet.insight import experiments
from flax_resnet.insight.study import TrainedRun
from flax_resnet.storage import read_json


def test_every_experiment_has_its_name():
  assert tuple(experiments.EXPERIMENTS) == verb.STUDIES


def test_residuals_are_followed_through_training(inspect, runs, tmp_path):
  code, out, err = inspect(
    *("--study", "residuals", "--workdir", runs / "projection"),
    *("--images", 8, "--out", tmp_path),
  )
  assert (code, err) == (0, "")
  sentence, *files = out.splitlines()
  assert sentence.startswith("projection: F(x) is ")
  assert " at step 4, and smaller than at step 0 in " in sentence
  assert files == [
    f"{tmp_path}/residuals.{end}" for end in ("json", "png", "svg")
  ]
  report = read_json(tmp_path / "residuals.json")
  assert (report["images"], report["data"]) == (8, "digits test[:20%]")
  network = report["networks"]["projection"]
  assert list(network["median"]) == ["0", "4"]
  assert len(network["median"]["4"]) == len(network["blocks"]) == 3
  low, middle, high = (network["quantiles"][x] for x in ("0.1", "0.5", "0.9"))
  assert middle == network["median"]["4"]
  assert all(a < b < c for a, b, c in zip(low, middle, high, strict=True))
  # The state before the first step is that which training began from.
  trained = TrainedRun.load(runs / "projection")
  (subject,) = _subjects(inspect, runs, 8)
  first = dict(subject.states())[0]
  np.testing.assert_array_equal(
    first["params"]["head"]["kernel"],
    trained.before["params"]["head"]["kernel"],
  )


def _subjects(inspect, runs, count):
  """Returns the networks that `inspect` gives to an experiment."""
  given = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      experiments,
      "run_experiment",
      lambda name, subjects, *_: given.extend(subjects) or ([], []),
    )
    workdir = runs / "projection"
    code, _, err = inspect(
      "--study", "lesions", "--workdir", workdir, "--images", count
    )
  assert (code, err) == (0, "")
  return given


def test_images_are_evenly_taken_from_the_split(inspect, runs):
  (subject,) = _subjects(inspect, runs, 4)
  run = TrainedRun.load(runs / "projection").run
  batch = next(run.dataset.eval.eval_batches(batch_size=72))
  rows = [0, 24, 47, 71]
  np.testing.assert_array_equal(subject.labels, batch["label"][rows])
  np.testing.assert_array_equal(
    subject.images, run.normalize(jnp.asarray(batch["image"][rows]))
  )
  (subject,) = _subjects(inspect, runs, 1000)
  assert len(subject.images) == 72


def test_a_damaged_checkpoint_is_left_out(inspect, runs, tmp_path):
  run = shutil.copytree(runs / "projection", tmp_path / "run")
  shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "3")
  for file in run.glob("checkpoints/3/state/d/*"):
    file.write_bytes(file.read_bytes()[::-1])
  with pytest.warns(UserWarning, match="checkpoint is damaged"):
    code, _, err = inspect(
      *("--study", "residuals", "--workdir", run, "--images", 8),
      *("--out", tmp_path),
    )
  assert (code, err) == (0, "")
  report = read_json(tmp_path / "residuals.json")
  assert list(report["networks"]["run"]["median"]) == ["0", "4"]


@pytest.mark.deep
@pytest.mark.parametrize("study", ["lesions", "surface", "shattering", "paths"])
def test_networks_are_compared(inspect, runs, tmp_path, study):
  plain = () if study == "paths" else (runs / "none",)
  code, out, err = inspect(
    *("--study", study, "--workdir", runs / "projection", *plain),
    *("--weights", "cifar_resnet8.digits", "--config", "digits"),
    *("--images", 8, "--out", tmp_path),
  )
  assert code == 0, err
  names = ["projection", *(each.name for each in plain), "cifar_resnet8.digits"]
  report = read_json(tmp_path / f"{study}.json")
  found = [each for each in report["networks"] if "untrained" not in each]
  assert found == names
  lines = out.splitlines()
  assert [
    each for each in names if not any(x.startswith(each) for x in lines)
  ] == []
  assert lines[-3:] == [
    f"{tmp_path}/{study}.{end}" for end in ("json", "png", "svg")
  ]
