"""The examples run, shortened, and do what their first lines say."""

import functools
import os
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet.models.variables import initial_variables
from flax_resnet.training import train
from flax_resnet.training.log import read_rows
from flax_resnet.weights import files
from tests.recipes import ROOT


@pytest.fixture
def run(call_main):
  """Runs an example in this process; returns what it prints."""

  def run(name, *arguments, said=""):
    path = str(ROOT / "examples" / f"{name}.py")
    start = functools.partial(runpy.run_path, path, run_name="__main__")
    with jax.numpy_rank_promotion("allow"):  # As in a project of one's own.
      code, out, err = call_main(start, *arguments)
    assert (code, err) == (0, said)
    return out

  return run


def width(picture):
  with Image.open(picture) as image:
    return image.size[0]


def percent(text, out):
  """Returns the first figure in percent of the line that `text` starts."""
  line = next(line for line in out.splitlines() if line.startswith(text))
  return float(re.search(r"([\d.]+)%", line)[1])


@pytest.mark.deep
def test_embeddings(run, config, tmp_path, mesh):
  with config.model.unlocked():
    config.model.stage_sizes = (1, 1)
  config.update(num_steps=60, log_every=60, eval_every=60, checkpoint_every=60)
  config.model.stage_features = (8, 16)
  config.augment.flip = False
  config.data.image_size = 16
  train(config, tmp_path / "run", mesh)
  out = run(
    *("embeddings", "--workdir", tmp_path / "run"),
    *("--out", tmp_path / "neighbours.png"),
  )
  assert percent("pixels", out) == 95.83
  assert "embeddings   16 numbers" in out
  assert percent("embeddings", out) > 60
  assert width(tmp_path / "neighbours.png") > 500


@pytest.mark.deep
def test_segmentation(run, tmp_path):
  picture = tmp_path / "segmentation.png"
  out = run(
    *("segmentation", "--steps", 100, "--batch-size", 4, "--out", picture)
  )
  assert "step  100  loss 0." in out
  found = dict(re.findall(r"IoU of (\w+) +([\d.]+)", out))
  assert set(found) == {"background", "square", "disc", "triangle"}
  assert float(found["background"]) > 0.8
  mean = float(re.search(r"mean IoU ([\d.]+)", out)[1])
  assert mean == pytest.approx(np.mean([*map(float, found.values())]), abs=1e-3)
  assert width(picture) > 500


@pytest.mark.deep
def test_finetune(run, tmp_path):
  rng = np.random.default_rng(0)
  for channel, name in enumerate(("rot", "grün", "blau 색")):
    (tmp_path / "images" / name).mkdir(parents=True)
    for i in range(20):
      pixels = rng.integers(0, 100, (20 + i, 30, 3), np.uint8)
      pixels[..., channel] += 100
      file = tmp_path / "images" / name / f"{i}.png"
      Image.fromarray(pixels).save(file)
  model = fr.create_model("cifar_resnet8", stage_features=(16, 32, 64))
  drawn = initial_variables(model, jax.random.key(0), (32, 32, 3))
  files.write_checkpoint(tmp_path / "weights", drawn)
  out = run(
    *("finetune", tmp_path / "images", "--weights", tmp_path / "weights"),
    *("--model", "cifar_resnet8", "--size", 16, "--batch-size", 8),
    *("--head-epochs", 1, "--epochs", 3, "--out", tmp_path / "tuned"),
    said="the weights have 10 classes and the model 3: its head is "
    "initialized anew\n",
  )
  assert "3 classes, 48 images to train on, 12 to evaluate on" in out
  assert "head, epoch 1: " in out
  last = next(x for x in out.splitlines() if x.startswith("all, epoch 3"))
  assert float(re.search(r"([\d.]+)%", last)[1]) > 90
  network, tuned = fr.from_pretrained(tmp_path / "tuned", "cifar_resnet8")
  assert network.num_classes == 3
  names = (tmp_path / "tuned" / "classes.txt").read_text().split("\n")
  assert names[:3] == ["blau 색", "grün", "rot"]
  stems = (x["params"]["stem"]["conv"]["kernel"] for x in (drawn, tuned))
  assert np.abs(np.subtract(*stems)).max() > 0


@pytest.mark.deep
def test_nnx(run):
  out = run("nnx", "--steps", 60)
  assert "step  50  loss 0." in out
  last = out.splitlines()[-1]
  assert last.endswith("of the 360 test digits")
  assert percent("", last) > 80


FEW = [
  f"--config.{change}"
  for change in (
    *("num_steps=4", "log_every=2", "eval_every=4", "checkpoint_every=4"),
    *(
      "steps_per_call=1",
      "model.stage_sizes=(1,)",
      "model.stage_features=(4,)",
    ),
  )
]


def run_alone(name, folder, data_dir, *arguments):
  """Runs an example in a process of its own, which logs what it likes."""
  done = subprocess.run(
    [
      *(sys.executable, ROOT / "examples" / f"{name}.py", *arguments, *FEW),
      f"--config.data.data_dir={data_dir}",
    ],
    cwd=folder,
    # mlflow-skinny cannot open the database that is the example's default.
    env=os.environ
    | {"PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_FILE_STORE": "true"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "finished after 4 steps" in done.stdout


@pytest.mark.deep
def test_log_to_wandb(tmp_path, data_dir):
  pytest.importorskip("wandb", reason="needs pip install wandb")
  run_alone("log_to_wandb", tmp_path, data_dir)
  (folder,) = (tmp_path / "wandb").glob("offline-run-*")
  (log,) = folder.glob("*.wandb")
  contents = log.read_bytes()  # A log of protocol buffers; keys are text.
  for key in (b"train/loss", b"val/top1", b"stage_features"):
    assert key in contents


@pytest.mark.deep
def test_log_to_mlflow(tmp_path, data_dir, monkeypatch):
  mlflow = pytest.importorskip("mlflow", reason="needs pip install mlflow")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  store = f"file:{tmp_path / 'mlruns'}"
  run_alone("log_to_mlflow", tmp_path, data_dir, "--store", store)
  mlflow.set_tracking_uri(store)
  (found,) = mlflow.search_runs(
    search_all_experiments=True, output_format="list"
  )
  rows = read_rows(tmp_path / "runs" / "mlflow" / "metrics.jsonl")
  client = mlflow.MlflowClient(store)
  history = client.get_metric_history(found.info.run_id, "train/loss")
  logged = {point.step: point.value for point in history}
  assert logged == {row["step"]: row["train/loss"] for row in rows}
  assert found.data.params["optim.learning_rate"] == "0.1"
