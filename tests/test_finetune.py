"""`benchmarks/finetune.py`: how it chooses a rate, and what it compares."""

import json
import runpy
import types

import pytest

import flax_resnet as fr
from flax_resnet.training.setup import set_up
from tests import drawing
from tests.recipes import ROOT


@pytest.fixture
def main(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  script = runpy.run_path(str(ROOT / "benchmarks" / "finetune.py"))
  return script["main"]


@pytest.fixture
def photographs(tmp_path):
  """19 images of each of four classes to train on, 5 and 6 to evaluate on."""
  (tmp_path / "photographs").mkdir()
  return drawing.write_photographs(tmp_path / "photographs")


@pytest.fixture
def trained(monkeypatch, mesh):
  """The runs by their folders: each is set up, and the rate is its score."""
  runs = {}

  def train(config, workdir):
    run = runs[workdir.name] = set_up(config.to_dict(), mesh)
    row = {
      "step": 1,
      # As if 0.04 for 256 examples were the best.
      "val/top1": 1 - abs(run.recipe.optim["learning_rate"] - 0.01),
      "val/count": len(run.dataset.eval),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return types.SimpleNamespace(summary={"seconds": 60.0})

  monkeypatch.setattr(fr, "train", train)
  return runs


def files(split):
  return {split.source.name(i) for i in range(len(split))}


def test_the_rate_is_chosen_without_the_test_split(
  call_main, main, photographs, trained, tmp_path
):
  """What is reported is of images that no choice has seen."""
  flags = ["--photographs", photographs, "--workdir", tmp_path / "runs"]
  code, out, err = call_main(main, *flags)
  assert (code, err) == (0, "")
  rates = ["rate_0.01", "rate_0.04", "rate_0.16"]
  assert list(trained) == [*rates, "everything_0.04", "head_0.04", "scratch"]
  reported = trained["everything_0.04"].dataset
  test = files(reported.eval)
  for name in rates:
    data = trained[name].dataset
    assert files(data.train).isdisjoint(files(data.eval))
    assert files(data.train) | files(data.eval) == files(reported.train)
  for name in ("head_0.04", "scratch"):
    assert files(trained[name].dataset.eval) == test
    assert files(trained[name].dataset.train) == files(reported.train)
  assert test.isdisjoint(files(reported.train)) and len(test) == 24
  assert "chosen: 0.04\n" in out
  assert "| everything, rate 0.04 | 100.00 +- 0.00 of 24 | 60 |" in out


def test_each_run_is_its_recipe(
  call_main, main, photographs, trained, tmp_path
):
  flags = ["--photographs", photographs, "--workdir", tmp_path / "runs"]
  call_main(main, *flags, "--rates=0.16", "--epochs=2", "--config.seed=3")
  everything, head, scratch = (
    trained[name].recipe for name in ("everything_0.16", "head_0.16", "scratch")
  )
  assert everything.init_from == head.init_from == "cifar_resnet20.cifar10"
  assert (everything.freeze_trunk, head.freeze_trunk) == (False, True)
  assert scratch.init_from is None
  # For 64 examples.
  peaks = [r.optim["learning_rate"] for r in (everything, head, scratch)]
  assert peaks == pytest.approx([0.04, 0.04, 0.025])
  for recipe in (everything, head, scratch):
    assert (recipe.seed, recipe.num_epochs) == (3, 2)
    assert recipe.model["name"] == "cifar_resnet20"
    assert recipe.data["image_size"] == 64


def test_the_best_rate_may_lie_beyond_what_was_tried(
  call_main, main, photographs, trained, tmp_path
):
  flags = ["--photographs", photographs, "--workdir", tmp_path / "runs"]
  _, out, _ = call_main(main, *flags, "--rates=0.04,0.16")
  assert "chosen: 0.04, at an end of what was tried" in out


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (["--photographs=DIR", "--rates=fast"], "--rates is 'fast': give numbers"),
    (["--photographs=DIR", "--rates=0.1,0"], "--rates is '0.1,0': give"),
    (["--photographs=DIR"], "DIR"),
    (["--config.seed=1"], "is of --photographs DIR"),
    (["resnet18-65"], "no case 'resnet18-65': did you mean 'resnet18-64'?"),
  ],
)
def test_a_wrong_flag_ends_with_a_sentence(
  flags, sentence, call_main, main, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, _, err = call_main(main, *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert sentence in err
