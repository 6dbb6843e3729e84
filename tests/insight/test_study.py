"""inspect: the numbers and the pictures of runs and of untrained networks."""

import dataclasses
import functools
import json
import re
import shutil

import jax
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import data
from flax_resnet.errors import InputError
from flax_resnet.insight import study
from flax_resnet.insight.probe import Probe
from flax_resnet.models.variables import count_parameters
from flax_resnet.weights import load_pretrained
from tests.runs import assert_same_bits
from tests.svg import texts


def read_strictly(path):
  """Returns what a reader finds who takes JSON by its letter."""

  def refuse(token):
    raise AssertionError(f"{token} is not JSON")

  return json.loads(path.read_text(), parse_constant=refuse)


def assert_is_picture(folder, name):
  with Image.open(folder / f"inspect_{name}.png") as picture:
    colors = picture.convert("RGB").getcolors(1 << 24)
  assert len(colors) > 20
  assert texts(folder / f"inspect_{name}.svg")


@pytest.fixture
def run(runs, tmp_path):
  """A copy of the run with skips."""
  return shutil.copytree(runs / "projection", tmp_path / "run")


@pytest.fixture(scope="module")
def inspected(runs, tmp_path_factory):
  """Copies of both runs, each inspected alone."""
  folder = tmp_path_factory.mktemp("inspected")
  for name in ("projection", "none"):
    study.study_run(shutil.copytree(runs / name, folder / name), 32)
  return folder


def test_a_run_is_inspected(inspected):
  run = inspected / "projection"
  report = read_strictly(run / "inspect.json")
  assert (report["step"], report["images"]) == (4, 32)
  blocks = [block["name"] for block in report["after"]["blocks"]]
  assert blocks == [f"stage{n}_block1" for n in (1, 2, 3)]
  assert report["after"]["blocks"] != report["before"]["blocks"]
  confusion = report["mistakes"]["confusion"]
  assert sum(map(sum, confusion)) == 72
  right = sum(confusion[n][n] for n in range(10))
  summary = json.loads((run / "summary.json").read_text())
  assert right / 72 == pytest.approx(summary["val/top1"])
  config = json.loads((run / "config.json").read_text())
  records = data.load(config["data"], num_classes=10).eval.source
  for mistake in report["mistakes"]["most_confident"]:
    assert mistake["class"] == str(records[mistake["index"]]["label"])
  for name in ("confusion", "gradients", "mistakes", "residuals", "responses"):
    assert_is_picture(run, name)
  assert not list(run.glob("*partial*"))


def test_a_plain_run_has_no_picture_of_residuals(inspected):
  pictures = {path.stem for path in (inspected / "none").glob("*.png")}
  assert "inspect_gradients" in pictures
  assert "inspect_residuals" not in pictures


@pytest.mark.deep
def test_untrained_networks_are_inspected(inspect, monkeypatch, tmp_path):
  thin = functools.partial(
    fr.create_model, stage_sizes=(1, 1), stage_features=(4, 8)
  )
  monkeypatch.setattr(study, "create_model", thin)
  code, _, err = inspect(
    *("--model", "cifar_resnet8", "--init", "--images", 4, "--out", tmp_path)
  )
  assert (code, err) == (0, "")
  nets = read_strictly(tmp_path / "inspect.json")["nets"]["cifar_resnet8"]
  assert set(nets) == {
    f"{kind}, {norm}"
    for kind in ("residual", "plain")
    for norm in ("BatchNorm", "no BatchNorm")
  }
  assert all(len(net["blocks"]) == 2 for net in nets.values())
  assert_is_picture(tmp_path, "gradients")
  assert set(nets) < set(texts(tmp_path / "inspect_gradients.svg"))


def test_runs_are_compared(inspect, runs, inspected, tmp_path):
  code, out, err = inspect(
    *("--workdir", runs / "none", runs / "projection"),
    *("--out", tmp_path, "--images", 32),
  )
  assert (code, err) == (0, "")
  rows = read_strictly(tmp_path / "inspect.json")["runs"]
  sizes = {}
  for shortcut, row in rows.items():
    summary = json.loads((runs / shortcut / "summary.json").read_text())
    params = load_pretrained(runs / shortcut).variables["params"]
    size = sizes[shortcut] = count_parameters(params)
    assert row["shortcut"] == shortcut
    assert row["val_error"] == 1 - summary["val/top1"]
    assert row["parameters"] == size
    printed = next(x for x in out.splitlines() if x.startswith(shortcut))
    assert printed.split()[1:5] == ["cifar_resnet8", shortcut, f"{size:,}", "4"]
    assert printed.endswith(f"{1 - summary['val/top1']:.2%}")
    alone = read_strictly(inspected / shortcut / "inspect.json")
    for moment in ("before", "after"):
      assert row[moment]["images"] == 32
      assert row[moment]["blocks"] == alone[moment]["blocks"]
  # 1x1 convolutions and BatchNorm, from 4 to 8 channels and from 8 to 8.
  assert sizes["projection"] - sizes["none"] == 4 * 8 + 2 * 8 + 8 * 8 + 2 * 8
  for name in ("curves", "gradients", "residuals", "responses"):
    assert f"inspect_{name}.svg" in out
    assert "cifar_resnet8 on digits, step 4" in texts(
      tmp_path / f"inspect_{name}.svg"
    )
    assert_is_picture(tmp_path, name)


def test_plain_runs_of_the_same_name(inspect, runs, tmp_path):
  """Nor does one have a row of training: curves of evaluations alone."""
  workdirs = tmp_path / "a" / "run", tmp_path / "b" / "run"
  for workdir in workdirs:
    shutil.copytree(runs / "none", workdir)
  metrics = workdirs[0] / "metrics.jsonl"
  metrics.write_text(re.sub('"train/', '"other/', metrics.read_text()))
  code, out, err = inspect(
    *("--workdir", *workdirs, "--out", tmp_path, "--images", 32)
  )
  assert (code, err) == (0, "")
  assert list(read_strictly(tmp_path / "inspect.json")["runs"]) == [
    "a/run",
    "b/run",
  ]
  assert "inspect_gradients.png" in out
  assert "residuals" not in out


@pytest.mark.deep
def test_a_run_that_diverged_is_inspected(inspect, run, monkeypatch):
  loaded = load_pretrained(run)
  nan = jax.tree.map(lambda leaf: leaf * float("nan"), loaded.variables)
  diverged = dataclasses.replace(loaded, variables=nan)
  monkeypatch.setattr(study, "load_pretrained", lambda _: diverged)
  code, _, err = inspect("--workdir", run, "--images", 32)
  assert (code, err) == (0, "")
  report = read_strictly(run / "inspect.json")
  assert report["after"]["blocks"][0]["gradient"] is None
  for name, label in (
    ("gradients", "whole"),
    ("residuals", "after training"),
    ("responses", "after training"),
  ):
    assert f"{label} (not finite)" in texts(run / f"inspect_{name}.svg")
  captions = texts(run / "inspect_mistakes.svg")
  assert any("(not finite)" in caption for caption in captions)
  assert not any("nan%" in caption for caption in captions)


def test_images_are_a_multiple_of_the_groups(inspect, run, monkeypatch):
  config = json.loads((run / "config.json").read_text())
  config["model"]["norm_group_size"] = 32
  (run / "config.json").write_text(json.dumps(config))
  code, _, err = inspect("--workdir", run, "--images", 48)
  assert (code, err.count("\n")) == (2, 1)
  assert "norm_group_size" in err
  assert not list(run.glob("inspect*"))
  monkeypatch.setattr(
    study,
    "probe",
    lambda model, states, images, labels: [
      Probe(len(images), loss=0.0, stem_gradient=0.0, blocks=[], responses={})
      for _ in states
    ],
  )
  before, after = study.TrainedRun.load(run).probes(64)
  assert before.images == after.images == 64


def test_a_run_is_measured_from_the_weights_that_it_started_from(
  runs, run, tmp_path
):
  """And cannot be once these are gone."""
  start = load_pretrained(run).variables
  later = shutil.copytree(runs / "projection", tmp_path / "later")
  config = json.loads((later / "config.json").read_text())
  config["init_from"] = str(run)
  (later / "config.json").write_text(json.dumps(config))
  assert_same_bits(study.TrainedRun.load(later).before, start)
  shutil.rmtree(run)
  with pytest.raises(InputError, match="config.init_from"):
    study.TrainedRun.load(later)
