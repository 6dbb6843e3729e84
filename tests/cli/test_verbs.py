"""convert, evaluate and models: what they print and write."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flax_resnet as fr
from flax_resnet.cli.tables import wilson_interval
from flax_resnet.weights import files
from tests.drawing import variables_of
from tests.recipes import ROOT


def test_models(call):
  code, out, _ = call("models", "resnet18", "--json")
  first = json.loads(out)
  assert code == 0
  assert first.pop("tags")[0] == "a1_in1k"
  assert first == {
    "name": "resnet18",
    "parameters": 11_689_512,
    "multiply_adds": 1_814_073_344,
    "activations": 2_483_712,
    "image_size": 224,
    "source": "He et al. 2015, arXiv:1512.03385",
  }
  code, out, _ = call("models", "resnet18")
  assert "resnet18                   11,689,512   1.814  224  He et al." in out
  assert "; a1_in1k, a2_in1k, a3_in1k and " in out
  _, out, _ = call("models", "cifar_resnet20", "--json")
  assert json.loads(out)["image_size"] == 32
  assert json.loads(out)["tags"] == ["cifar10"]


def test_published_weights(call):
  code, out, _ = call("models", "resnet50", "--pretrained")
  assert code == 0
  _, first, *_ = out.splitlines()
  assert first.split() == [
    "resnet50.a1_in1k",
    "288",
    "81.24",
    "1,000",
    "apache-2.0",
  ]
  assert "cc-by-nc-4.0" in out
  _, out, _ = call("models", "resnet50.a1_*", "--pretrained", "--json")
  row = json.loads(out)
  assert row["repository"] == "timm/resnet50.a1_in1k"
  assert (row["test_crop_fraction"], row["top1"]) == (1.0, 81.24)


def test_convert_there_and_back(call, weights, tmp_path):
  flax, back = tmp_path / "flax", tmp_path / "back.SafeTensors"
  code, out, err = call("convert", weights, flax, "--model", "cifar_resnet20")
  assert (code, err) == (0, "")
  assert out == f"{flax}: cifar_resnet20, 269,722 parameters, 10 classes\n"
  arguments = ("--model", "cifar_resnet20", "--names", "cifar")
  assert call("convert", flax, back, *arguments)[0] == 0
  before, after = load_file(weights), load_file(back)
  assert before.keys() == after.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(value, after[key])
  assert {path.name for path in tmp_path.iterdir()} == {flax.name, back.name}


def test_convert_takes_the_average_unless_told_not_to(call, tmp_path):
  model = fr.create_model("cifar_resnet8", stage_features=(4, 4, 4))
  raw = variables_of(model, (1, 8, 8, 3))
  average = jax.tree.map(lambda leaf: leaf + 1, raw)
  saved = {"params": raw["params"], "batch_stats": raw["batch_stats"]}
  config = {
    "model": {"name": "cifar_resnet8", "stage_features": [4, 4, 4]},
    "data": {"image_size": 8},
    "augment": {"mean": [0.5] * 3, "std": [0.5] * 3},
  }
  files.write_checkpoint(tmp_path / "1" / "state", saved | {"average": average})
  about = tmp_path / "1" / "about" / "metadata"
  about.parent.mkdir()
  about.write_text(json.dumps({"config": config, "class_names": []}))
  for flags, expected in (([], average), (["--no-ema"], raw)):
    out = tmp_path / f"out{len(flags)}.safetensors"
    assert call("convert", tmp_path / "1", out, *flags)[0] == 0
    wanted, found = fr.to_torch(expected, model), load_file(out)
    for name, value in wanted.items():
      np.testing.assert_array_equal(found[name], value)


def test_convert_a_run_whose_recipe_changes_the_network(
  call, workdir, tmp_path
):
  out = tmp_path / "out.safetensors"
  code, _, err = call("convert", workdir, out)
  assert (code, err) == (0, "")
  assert load_file(out)["layer1.0.conv1.weight"].shape == (4, 4, 3, 3)


def test_a_run_becomes_a_folder_for_the_hub(call, workdir, tmp_path):
  """With its recipe and results; evaluated, it is as right as the run."""
  out = tmp_path / "OUT"
  code, printed, err = call("convert", workdir, out, "--hub")
  assert (code, printed) == (
    0,
    f"{out}: {workdir}, 2,518 parameters, 10 classes\n",
  )
  assert err.startswith(f"{out}: timm has no architecture for cifar_resnet8")
  card = (out / "README.md").read_text()
  summary = json.loads((workdir / "summary.json").read_text())
  assert f"top-1 {summary['val/top1']:.2%} of 360 images, as measured" in card
  assert "- **Data set:** `digits`, train" in card
  assert "- **Steps:** 4" in card
  config = ROOT / "configs" / "digits.py"
  run = json.loads((workdir / "config.json").read_text())
  code, result, err = call(
    *("evaluate", "--weights", out, "--config", config, "--json"),
    f"--config.data.data_dir={run['data']['data_dir']}",
  )
  assert code == 0, err
  assert err == (
    "images are prepared as the weights say: 8 pixels of 8, bilinear, mean "
    "(0.3,), std (0.35,)\n"
  )
  assert json.loads(result)["val/top1"] == pytest.approx(summary["val/top1"])


def test_a_run_is_evaluated_as_it_was_in_training(call, workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  code, out, err = call("evaluate", "--workdir", workdir, "--json")
  assert (code, err) == (0, "")
  result = json.loads(out)
  assert result["val/top1"] == pytest.approx(summary["val/top1"])
  assert result["val/count"] == 360
  low, high = result["val/top1_interval"]
  assert low < summary["val/top1"] < high
  code, out, _ = call("evaluate", "--workdir", workdir)
  assert f"top1 {summary['val/top1']:.2%} (error " in out
  assert out.endswith("on 360 images\n")
  part = "--config.data.eval_split=test[:64]"
  code, out, _ = call("evaluate", "--workdir", workdir, "--json", part)
  assert json.loads(out)["val/count"] == 64


def test_an_evaluation_says_all_in_json_and_on_demand(call, workdir):
  code, out, err = call("evaluate", "--workdir", workdir, "--json", "--top", 3)
  assert (code, err) == (0, "")
  result = json.loads(out)
  confusion = np.array(result["val/confusion"])
  assert confusion.sum() == result["val/count"] == 360
  assert np.trace(confusion) / 360 == pytest.approx(result["val/top1"])
  by_class = result["val/accuracy_by_class"]
  assert list(by_class) == [str(n) for n in range(10)]
  assert by_class["3"] == pytest.approx(confusion[3, 3] / confusion[3].sum())
  bins = result["val/calibration"]
  assert sum(bins["count"]) == 360
  assert len(bins["accuracy"]) == len(bins["confidence"]) == 15
  gaps = [
    n / 360 * abs(a - c) for n, a, c in zip(*bins.values(), strict=True) if n
  ]
  assert result["val/calibration_error"] == pytest.approx(sum(gaps), abs=1e-6)
  assert result["val/top1"] <= result["val/top3"] <= result["val/top5"]
  code, plain, _ = call("evaluate", "--workdir", workdir, "--top", 3)
  assert f"top3 {result['val/top3']:.2%}" in plain
  code, out, _ = call("evaluate", "--workdir", workdir, "--details")
  assert out.count("\n") > 25
  assert f"calibration error {result['val/calibration_error']:.2%};" in out
  row = next(x for x in out.splitlines() if x.startswith("3     "))
  assert f"{by_class['3']:.2%}" in row


def test_flip_size_and_crop(call, workdir):
  """A run of 8 pixels at others: its maps are pooled at any size."""
  rows = {}
  for flags in (
    (),
    ("--flip",),
    ("--image-size", 12),
    ("--image-size", "12,8"),
    ("--crop-fraction", 0.5),
  ):
    code, out, err = call("evaluate", "--workdir", workdir, "--json", *flags)
    assert (code, err) == (0, "")
    rows[flags] = json.loads(out)["val/loss"]
  assert len(set(rows.values())) == 5
  key = "--config.data.eval_image_size=12"
  code, out, _ = call("evaluate", "--workdir", workdir, "--json", key)
  assert json.loads(out)["val/loss"] == rows["--image-size", 12]
  key = "--config.data.eval_image_size=12,8"
  code, out, _ = call("evaluate", "--workdir", workdir, "--json", key)
  assert json.loads(out)["val/loss"] == rows["--image-size", "12,8"]


def test_several_networks_are_one_table(call, workdir, tmp_path):
  """The newest and the only checkpoint: the same numbers."""
  other = shutil.copytree(workdir, tmp_path / "other")
  code, out, err = call("evaluate", "--workdir", workdir, other)
  assert (code, err) == (0, "")
  head, first, second = out.splitlines()
  assert head.split()[0] == "network"
  assert head.endswith("images/s")
  assert first.split()[0] == str(workdir)
  assert first.split()[1:-1] == second.split()[1:-1]
  code, out, _ = call("evaluate", "--workdir", workdir, other, "--json")
  rows = list(map(json.loads, out.splitlines()))
  assert [row["network"] for row in rows] == [str(workdir), str(other)]
  assert rows[0]["images_per_second"] > 0
  config = ROOT / "configs" / "digits.py"
  run = json.loads((workdir / "config.json").read_text())
  code, out, err = call(
    *("evaluate", "--weights", workdir, other / "checkpoints" / "4"),
    *("--config", config, "--json", "--config.data.image_size=8"),
    f"--config.data.data_dir={run['data']['data_dir']}",
  )
  assert code == 0, err
  weights = list(map(json.loads, out.splitlines()))
  assert [row["val/top1"] for row in weights] == [
    row["val/top1"] for row in rows
  ]


def test_the_interval_is_that_of_wilson():
  """As R's prop.test(90, 100, correct = FALSE) has it."""
  assert wilson_interval(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
  assert wilson_interval(1.0, 360)[1] == pytest.approx(1)


def test_weights_are_evaluated_on_the_data_of_a_recipe(call, weights, tmp_path):
  """One class is right as often as it comes: the head sees nothing else."""
  tensors = load_file(weights)
  tensors["linear.weight"][:] = 0
  tensors["linear.bias"][:] = np.eye(10)[3]
  save_file(tensors, tmp_path / "three.safetensors")
  code, out, err = call(
    *("evaluate", "--weights", tmp_path / "three.safetensors", "--json"),
    *("--model", "cifar_resnet20"),
    *("--config", ROOT / "configs/cifar10_resnet20.py"),
    "--config.data.name=synthetic",
  )
  assert (code, err) == (0, "")
  result = json.loads(out)
  # The synthetic test images have the labels 0, 1, ..., 9, 0, 1, ...
  assert result["val/count"] == 256
  assert result["val/top1"] == pytest.approx(26 / 256)
