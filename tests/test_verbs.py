import functools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flax_resnet as fr
from flax_resnet import __main__ as verbs
from flax_resnet.training import train
from flax_resnet.cli.evaluate import wilson_interval
from flax_resnet.weights import WeightsError
from tests.recipes import ROOT
from tests.weights import cases


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, verbs.main)


@pytest.fixture
def weights(tmp_path):
  """ResNet-20 for CIFAR-10 under akamaster's names."""
  case = cases.Case("cifar_resnet20", (), "cifar", fields=())
  path = tmp_path / "weights.safetensors"
  save_file(cases.filled(cases.our_shapes(case)), path)
  return path


def test_models_as_json(run, monkeypatch):
  monkeypatch.setattr(
    "flax_resnet.models.list_models", lambda: ["resnet18", "cifar_resnet20"]
  )
  code, out, _ = run("models", "--json")
  first, second = map(json.loads, out.splitlines())
  assert code == 0
  assert first == {
    "name": "resnet18",
    "parameters": 11_689_512,
    "multiply_adds": 1_814_073_344,
    "activations": 2_483_712,
    "image_size": 224,
    "source": "He et al. 2015, arXiv:1512.03385",
  }
  assert second["image_size"] == 32
  code, out, _ = run("models")
  assert "resnet18                   11,689,512   1.814  224  He et al." in out


def test_convert_there_and_back(run, weights, tmp_path):
  flax, back = tmp_path / "flax", tmp_path / "back.safetensors"
  code, out, err = run("convert", weights, flax, "--model", "cifar_resnet20")
  assert (code, err) == (0, "")
  assert out == f"{flax}: cifar_resnet20, 269,722 parameters, 10 classes\n"
  arguments = ("--model", "cifar_resnet20", "--names", "cifar")
  assert run("convert", flax, back, *arguments)[0] == 0
  before, after = load_file(weights), load_file(back)
  assert before.keys() == after.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(value, after[key])


def test_convert_a_run_whose_recipe_changes_the_network(
  run, config, tmp_path, mesh
):
  config.num_steps = 1
  train(config, tmp_path / "run", mesh)  # With thin stages.
  out = tmp_path / "out.safetensors"
  code, _, err = run("convert", tmp_path / "run", out)
  assert (code, err) == (0, "")
  assert load_file(out)["layer1.0.conv1.weight"].shape == (4, 4, 3, 3)
  model, _ = fr.from_pretrained(tmp_path / "run", norm_group_size=2)
  assert tuple(model.stage_features) == (4, 8, 8)
  assert (model.num_classes, model.norm_group_size) == (10, 2)
  (tmp_path / "run" / "config.json").write_text("{}")
  with pytest.raises(WeightsError, match=r"config.json is not that of a run"):
    fr.from_pretrained(tmp_path / "run")


def test_convert_refuses_in_one_sentence(run, weights, tmp_path):
  out = tmp_path / "out.safetensors"
  for arguments, message in (
    ((tmp_path / "no.pth", out, "--model", "resnet18"), "there is no weight"),
    ((weights, out, "--model", "resnet19"), "unknown model 'resnet19'"),
    ((weights, weights, "--model", "cifar_resnet20"), "is there already"),
    ((weights, tmp_path / "a" / "b.pth", "--model", "x"), "not a folder"),
    ((weights, out, "--model", "cifar_resnet32"), "missing: layer1.3.bn1"),
    ((weights, out, "--model", "x", "--names", "keras"), "--names is 'keras'"),
    ((weights, out), "does not say of which network: give --model NAME"),
  ):
    code, _, err = run("convert", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_run_is_evaluated_as_it_was_in_training(run, config, tmp_path, mesh):
  summary = train(config, tmp_path / "run", mesh)
  code, out, err = run("evaluate", "--workdir", tmp_path / "run", "--json")
  assert (code, err) == (0, "")
  result = json.loads(out.splitlines()[-1])  # After what training said.
  assert result["val/top1"] == pytest.approx(summary["val/top1"])
  assert result["val/count"] == 360
  low, high = result["val/top1_interval"]
  assert low < summary["val/top1"] < high
  code, out, _ = run("evaluate", "--workdir", tmp_path / "run")
  assert f"top1 {summary['val/top1']:.2%} (error " in out
  assert out.endswith("on 360 images\n")


def test_a_run_is_not_evaluated_by_another_recipe(run, tmp_path):
  code, _, err = run(
    *("evaluate", "--workdir", tmp_path, "--config", tmp_path / "no.py")
  )
  assert code == 2
  assert "--config is that of --weights" in err


def test_the_interval_is_that_of_wilson():
  """As R's prop.test(90, 100, correct = FALSE) has it."""
  assert wilson_interval(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
  assert wilson_interval(1.0, 360)[1] == pytest.approx(1)


def test_weights_for_other_images_are_told(run, weights, data_dir):
  code, _, err = run(
    "evaluate",
    "--weights",
    weights,
    "--model",
    "cifar_resnet20",
    "--config",
    ROOT / "configs/digits.py",
    f"--config.data.data_dir={data_dir}",
    "--config.model.stage_features=(16,32,64)",
  )
  assert code == 2
  assert "the images have 1 channels and the weights want 3" in err


def test_weights_are_evaluated_on_the_data_of_a_recipe(run, weights, tmp_path):
  """One class is right as often as it comes: the head sees nothing else."""
  tensors = load_file(weights)
  tensors["linear.weight"][:] = 0
  tensors["linear.bias"][:] = np.eye(10)[3]
  save_file(tensors, tmp_path / "three.safetensors")
  code, out, err = run(
    "evaluate",
    "--weights",
    tmp_path / "three.safetensors",
    "--model",
    "cifar_resnet20",
    "--config",
    ROOT / "configs/cifar10_resnet20.py",
    "--config.data.name=synthetic",
    "--json",
  )
  assert (code, err) == (0, "")
  result = json.loads(out)
  # The synthetic test images have the labels 0, 1, ..., 9, 0, 1, ...
  assert result["val/count"] == 256
  assert result["val/top1"] == pytest.approx(26 / 256)


def test_weights_for_other_classes_are_not_given_a_new_head(
  run, weights, tmp_path
):
  tensors = load_file(weights)
  tensors["linear.weight"] = tensors["linear.weight"][:7]
  tensors["linear.bias"] = tensors["linear.bias"][:7]
  save_file(tensors, tmp_path / "seven.safetensors")
  code, out, err = run(
    "evaluate",
    *("--weights", tmp_path / "seven.safetensors"),
    *("--model", "cifar_resnet20"),
    *("--config", ROOT / "configs/cifar10_resnet20.py"),
    "--config.data.name=synthetic",
  )
  assert (code, out) == (2, "")
  assert "the weights have 7 classes and the data set 10" in err


def test_evaluate_refuses_in_one_sentence(run, tmp_path, weights):
  for arguments, message in (
    ((), "give either --workdir or --weights"),
    (("--weights", weights), "--weights needs --model, and --config"),
    (("--workdir", tmp_path), "it has no config.json"),
    (("--workdir", tmp_path, "--frob"), "--frob is not a flag"),
  ):
    code, _, err = run("evaluate", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
