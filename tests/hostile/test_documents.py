"""Damaged config.json and metrics.jsonl, on all ways on which they are read."""

import argparse
import json
import shutil
import types

import pytest

from flax_resnet import plots, storage
from flax_resnet.cli import evaluate, flags
from flax_resnet.errors import reported_as
from flax_resnet.insight import comparison
from flax_resnet.recipes import load_recipe
from flax_resnet.training import loop
from flax_resnet.training.log import Log
from flax_resnet.training.setup import default_values
from flax_resnet.training.workdir import check_workdir
from flax_resnet.weights import load_pretrained
from tests import recipes
from tests.hostile.mutations import damaged, damaged_json
from tests.hostile.survival import COUNTS, survive


@pytest.fixture(scope="module")
def config():
  """The config of a run on synthetic images."""
  values = load_recipe(
    recipes.ROOT / "configs/synthetic.py",
    ["model.name=cifar_resnet8", "data.image_size=8", "data.num_threads=0"],
  )
  return json.loads(json.dumps(values.to_dict()))


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_configs(tmp_path, config, count):
  args = argparse.Namespace(
    **{"workdir": tmp_path, "weights": None, "model": None, "config": None},
    **{"json": True, "overrides": ["seed=1"], "checkpoint": "newest"},
    ema=True,
  )
  of_evaluate = {
    **{"workdir": [tmp_path], "image_size": None, "crop_fraction": None},
    **{"top": None, "flip": False, "details": False, "real_labels": None},
  }
  to_evaluate = argparse.Namespace(**{**vars(args), **of_evaluate})

  def load():
    with reported_as("config.init_from"):
      load_pretrained(tmp_path, "cifar_resnet8")

  # A checkpoint without arrays: all of them read the config before those.
  checkpoint = tmp_path / "checkpoints" / "1"
  (checkpoint / "state").mkdir(parents=True)
  (checkpoint / "about").mkdir()
  storage.write_digests(checkpoint / "state")
  about = {"config": config, "class_names": list("0123456789")}
  ways = [
    lambda: flags.load_predictor(args),
    lambda: check_workdir(tmp_path, config, default_values(config)),
    lambda: evaluate.run(to_evaluate),
    load,
  ]

  def attempt(rng):
    (tmp_path / "config.json").write_bytes(damaged_json(config, rng))
    metadata = damaged_json(about, rng)
    (checkpoint / "about" / "metadata").write_bytes(metadata)
    return rng.choice(ways)

  survive(tmp_path, count, attempt)
  (tmp_path / "config.json").write_text(json.dumps(config))
  check_workdir(tmp_path, config, default_values(config))


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
def test_damaged_metrics(tmp_path, capsys, count):
  (tmp_path / "config.json").write_text("{}")
  path = tmp_path / "metrics.jsonl"
  good = [json.dumps(row(step)).encode() for step in range(1, 5)]
  run = types.SimpleNamespace(
    score_key="val/top1",
    num_steps=6,
    recipe=types.SimpleNamespace(patience=None),
  )
  # matplotlib makes a cache of its own at the first picture.
  plots.training_curves([row(1)], "a net", tmp_path / "first.png")

  def attempt(rng):
    lines = [
      damaged_json(json.loads(line), rng) if rng.random() < 0.5 else line
      for line in good
    ]
    data = b"\n".join(lines) + b"\n"
    shutil.rmtree(tmp_path / "tensorboard", ignore_errors=True)
    path.write_bytes(data if rng.random() < 0.7 else damaged(data, rng, [data]))
    draws = rng.random() < 0.01
    return rng.choice([lambda: resume(draws), lambda: resume(draws), compare])

  def resume(draws):
    log = Log(tmp_path, 4, 6)
    for step in (5, 6):
      log.write(step, {k: v for k, v in row(step).items() if k != "step"})
    loop._print_summary(run, log, loop._summary(run, log, 6), tmp_path)
    if draws:
      plots.training_curves(log.rows, "a net", tmp_path / "curves.png")
    log.close()
    capsys.readouterr()

  def compare():
    metrics = comparison._read_metrics(tmp_path)
    trained = types.SimpleNamespace(
      run=types.SimpleNamespace(
        recipe=types.SimpleNamespace(model={"name": ""}, data={"name": ""}),
        model=types.SimpleNamespace(shortcut=""),
      ),
      after={"params": {}},
    )
    comparison.table({"a": comparison._row(trained, metrics)})

  survive(tmp_path, count, attempt)
