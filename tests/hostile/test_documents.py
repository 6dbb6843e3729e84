"""Damaged config.json and metrics.jsonl, on all ways on which they are read."""

import argparse
import json
import shutil
import types

import pytest

from flax_resnet.insight import comparison
from flax_resnet import plots
from flax_resnet.training import load_recipe
from flax_resnet.training import loop
from flax_resnet.training import train
from flax_resnet.training import workdir
from flax_resnet.training.log import Logbook
from flax_resnet.training.log import read
from flax_resnet.errors import reported_as
from flax_resnet.cli import evaluate
from flax_resnet.cli import flags
from flax_resnet.weights import load_pretrained
from tests import recipes
from tests.hostile.mutations import damaged, damaged_json
from tests.hostile.survival import COUNTS, survive

FLAGS = {"weights": None, "model": None, "config": None, "json": True}


@pytest.fixture(scope="module")
def made_up():
  """The config of a run on made-up images."""
  config = load_recipe(
    recipes.ROOT / "configs/synthetic.py",
    ["model.name=cifar_resnet8", "data.image_size=8", "data.num_threads=0"],
  )
  return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_configs(tmp_path, made_up, count):
  flags = argparse.Namespace(workdir=tmp_path, **FLAGS)
  # None has a checkpoint: all of them look at the config before it.
  ways = [
    lambda: flags.predictor_of(flags),
    lambda: workdir.check(tmp_path, made_up),
    lambda: evaluate.run(flags, ["seed=1"]),
    lambda: load(tmp_path),
  ]

  def attempt(rng):
    (tmp_path / "config.json").write_bytes(damaged_json(made_up, rng))
    return rng.choice(ways)

  survive(tmp_path, count, attempt)
  (tmp_path / "config.json").write_text(json.dumps(made_up))
  workdir.check(tmp_path, made_up)


def test_a_finished_run_without_its_metrics_is_evaluated_again(
  tmp_path, data_dir
):
  config = recipes.tiny(data_dir)
  before = train(config, tmp_path)
  (tmp_path / "metrics.jsonl").write_text("damaged")
  after = train(config, tmp_path)
  assert after["val/top1"] == before["val/top1"]
  (row,) = read(tmp_path / "metrics.jsonl")
  assert row["step"] == before["step"]


def load(path):
  with reported_as("config.init_from"):
    load_pretrained(path, "cifar_resnet8")


def row(step):
  return {
    "step": step,
    "epoch": step / 10,
    "train/loss": 2.0 / step,
    "train/top1": 0.5,
    "learning_rate": 0.1,
    "images_per_second": 123.4,
    "val/loss": 1.0,
    "val/top1": step / 100,
    "val/top5": 0.9,
    "val/count": 7,
    "seconds": 1.5 * step,
  }


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_metrics(tmp_path, monkeypatch, capsys, count):
  (tmp_path / "config.json").write_text("{}")
  path = tmp_path / "metrics.jsonl"
  good = [json.dumps(row(step)).encode() for step in range(1, 5)]
  draw = plots.draw
  # matplotlib makes a cache of its own at the first picture.
  draw([row(1)], "a net", tmp_path / "first.png")
  run = types.SimpleNamespace(num_steps=6, title=lambda: "a net")

  def attempt(rng):
    lines = [
      damaged_json(json.loads(line), rng) if rng.random() < 0.5 else line
      for line in good
    ]
    data = b"\n".join(lines) + b"\n"
    shutil.rmtree(tmp_path / "tensorboard", ignore_errors=True)
    path.write_bytes(data if rng.random() < 0.7 else damaged(data, rng, [data]))
    drawn = draw if rng.random() < 0.01 else lambda *_: None
    monkeypatch.setattr(curves, "draw", drawn)
    return rng.choice([resume, resume, compare])

  def resume():
    log = Logbook(tmp_path, 4, 6)
    for step in (5, 6):
      log.write(step, {k: v for k, v in row(step).items() if k != "step"})
    loop._conclude(run, 6, tmp_path, log, 0)
    log.close()
    capsys.readouterr()

  def compare():
    metrics = comparison._metrics(tmp_path)
    trained = types.SimpleNamespace(
      run=types.SimpleNamespace(
        recipe=types.SimpleNamespace(model={"name": ""}, data={"name": ""}),
        model=types.SimpleNamespace(shortcut=""),
      ),
      after=types.SimpleNamespace(params={}),
    )
    found = comparison._row(trained, metrics)
    comparison.table({"a": found})

  survive(tmp_path, count, attempt)
