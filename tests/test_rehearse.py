"""`benchmarks/rehearse.py`: how recipes are scaled, and what it reports."""

import json
import math
import runpy
import shlex
import types

import pytest

from flax_resnet.errors import InputError, RunError
from flax_resnet.storage import read_config
from flax_resnet.training import load_recipe
from flax_resnet.training.log import read_rows
from flax_resnet.training.setup import set_up
from tests import drawing
from tests.recipes import ROOT

SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "rehearse.py"))
# All that may differ from the recipe, as it is for the same batch size.
SCALED = {
  *("batch_size", "num_epochs", "ema_decay", "ema_every"),
  *("model.name", "model.num_classes", "model.norm_group_size"),
  *("data.name", "data.root", "data.train_split", "data.eval_split"),
  *("data.image_size", "data.eval_image_size", "data.early_image_sizes"),
  # What cannot change the parameters of a step.
  *("eval_batch_size", "keep_checkpoints", "data.num_threads"),
  *("log_every", "eval_every", "checkpoint_every"),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """96 images to train on and 24 to evaluate on."""
  return drawing.write_photographs(tmp_path_factory.mktemp("photographs"))


def flat(config):
  return SCRIPT["_flat"](config.to_dict())


def test_every_recipe_of_imagenet_is_rehearsed():
  paths = (ROOT / "configs").glob("*.py")
  assert set(SCRIPT["RECIPES"]) == {
    path.stem for path in paths if load_recipe(path).data.name == "imagenet2012"
  }


@pytest.mark.parametrize("name", SCRIPT["RECIPES"])
def test_only_what_is_documented_is_scaled(name, photographs, mesh):
  own = load_recipe(name)
  changes = SCRIPT["changes"](name, photographs, pixels=64, epochs=6)
  here = load_recipe(name, changes)
  copies = own.data.get("repeated_augmentation", 1)
  assert here.batch_size == (60 if copies == 3 else 64)
  # Rates are those of the recipe at this batch size.
  expected = flat(load_recipe(name, [f"batch_size={here.batch_size}"]))
  if own.optim.name == "lars":  # Which has no rule there.
    expected["optim.learning_rate"] = round(10.5 * (64 / 3264) ** 0.5, 4)
  values = flat(here)
  assert {
    key
    for key in values.keys() | expected.keys()
    if values.get(key) != expected.get(key)
  } <= SCALED

  small, large = here.data, own.data
  sizes = [small.image_size, small.get("eval_image_size") or small.image_size]
  whole = [large.image_size, large.get("eval_image_size") or large.image_size]
  assert sizes[1] / sizes[0] == pytest.approx(whole[1] / whole[0], rel=0.03)
  for (until, size), (share, of) in zip(
    small.get("early_image_sizes", ()),
    large.get("early_image_sizes", ()),
    strict=True,
  ):
    assert (until, size) == (share, round(of * 64 / 224))

  run = set_up(here.to_dict(), mesh)
  assert run.model.num_classes == 4
  assert here.model.norm_group_size <= own.model.norm_group_size
  cost = 3 if own.model.name == "resnetrs50" else 1
  pixels = run.num_steps * here.batch_size * sizes[0] ** 2 * cost
  assert pixels == pytest.approx(6 * 96 * 64**2, rel=0.1)


@pytest.mark.parametrize(
  ("name", "share"),
  [
    # Steps that an average is over, of those of its run: 1 / (1 - 0.9999) of
    # 350 epochs of batch 4096, and 32 / (2e-5 * 1024 * 32 / 600) of 600.
    ("imagenet_resnetrs50", 10_000 / (350 * 1_281_167 / 4096)),
    ("imagenet_torchvision_v2", 600 / (2e-5 * 1024) / (600 * 1_281_167 / 1024)),
  ],
)
@pytest.mark.parametrize("steps", [500, 100_000])
def test_an_average_is_over_the_same_share_of_the_run(name, share, steps):
  keys = SCRIPT["average"](load_recipe(name), steps)
  span = keys["ema_every"] / (1 - keys["ema_decay"])
  assert span / steps == pytest.approx(share, rel=0.01)
  assert keys["ema_every"] == 1 if steps == 500 else keys["ema_every"] >= 1


def test_an_average_of_a_run_of_few_steps_is_one():
  keys = SCRIPT["average"](load_recipe("imagenet_resnetrs50"), 3)
  assert keys == {"ema_decay": 0.5, "ema_every": 1}
  assert SCRIPT["average"](load_recipe("imagenet_resnet50"), 3) == {}


def test_the_pieces_of_a_recipe_cannot_be_missed(photographs, monkeypatch):
  """A recipe of a network that nothing was chosen for."""
  function = SCRIPT["changes"]
  monkeypatch.setitem(function.__globals__, "NETWORKS", {"resnet50": ("a", 1)})
  with pytest.raises(InputError, match="imagenet_resnetrs50 trains resnetrs50"):
    function("imagenet_resnetrs50", photographs, 64, 6)


@pytest.mark.parametrize(
  ("losses", "top1", "expected"),
  [
    ([1.6, 1.7, 1.5], 0.30, "passed"),
    ([1.6, 1.4, 1.6], 0.30, "the loss has not fallen"),
    ([1.6, math.nan], 0.30, "the loss has not fallen"),
    # 863 images: an error of 0.0153 at 0.28.
    ([1.6, 1.5], 0.28, "not above the largest class"),
    ([1.6, 1.5], 0.0, "not above the largest class"),
  ],
)
def test_the_verdict(losses, top1, expected):
  said = SCRIPT["verdict"](losses, top1, count=863, share=0.244)
  assert said.startswith(expected)


def test_what_was_published_is_that_of_the_docstring():
  published = SCRIPT["published"]
  assert published("imagenet_rsb_a2") == "79.8 % top-1"
  assert all(map(published, SCRIPT["RECIPES"]))


def records_in(workdir):
  text = (workdir / "rehearsals.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.deep
def test_a_rehearsal_is_a_run_of_the_trainer(call_main, photographs, tmp_path):
  name = "imagenet_torchvision_v2"
  flags = [
    *(photographs, "--recipes", name, "--pixels=16", "--workdir", tmp_path),
    "--config.num_steps=2",
    "--config.model.dtype=float32",
    "--config.model.stage_sizes=(1,)",
    "--config.model.stage_features=(4,)",
  ]
  code, _, err = call_main(SCRIPT["main"], *flags)
  (record,) = records_in(tmp_path)
  assert (code, err) == (0 if record["verdict"] == "passed" else 1, "")
  first, last = read_rows(tmp_path / name / "metrics.jsonl")
  assert record["loss/first"] == first["train/loss"]
  assert record["loss/last"] == last["train/loss"]
  for key in ("val/top1", "val/raw_top1", "val/count"):
    assert record[key] == last[key]
  assert (record["val/count"], record["step"]) == (24, 2)
  # The command is that of train.py, by which the run is continued.
  words = shlex.split(record["command"])
  assert words[:3] == ["python", "train.py", "--config"]
  changes = [w[9:] for w in words if w.startswith("--config.")]
  config = load_recipe(ROOT / words[3], changes)
  config.model.num_classes = 4  # As the data have.
  assert json.loads(config.to_json()) == read_config(tmp_path / name)


@pytest.fixture
def trained(monkeypatch):
  """The recipes that were trained: of each, a log is written, and no more."""
  names = []

  def train(config, workdir):
    names.append(workdir.name)
    workdir.mkdir()
    if config.optim.name == "lars":
      raise RunError("the loss of step 3 is not finite")
    rows = [
      {"step": 1, "train/loss": 1.75},
      {"step": 2, "train/loss": 1.5, "val/top1": 0.75, "val/count": 24},
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    return types.SimpleNamespace(summary={"step": 2, "seconds": 1234.5})

  monkeypatch.setitem(SCRIPT["main"].__globals__, "train", train)
  return names


def test_a_rehearsal_is_trained_once(call_main, photographs, tmp_path, trained):
  """The second time its record is taken, unless anything has changed."""
  name = "imagenet_torchvision_v1"
  flags = [photographs, "--recipes", name, "--workdir", tmp_path]
  code, out, err = call_main(SCRIPT["main"], *flags)
  assert (code, err, trained) == (0, "", [name])
  assert f"python train.py --config configs/{name}.py --workdir" in out
  (row,) = [line for line in out.splitlines() if line.startswith("| torch")]
  cells = row.strip("| ").split(" | ")
  assert cells[:2] == ["torchvision_v1", "76.13 % top-1 (IMAGENET1K_V1)"]
  assert "resnet50 to resnet18" in cells[2]
  assert "batch_size 256 to 64" in cells[2]
  error = math.sqrt(0.75 * 0.25 / 24)
  assert cells[3:] == [
    *("1.750 to 1.500", f"75.00% +- {error:.2%}", "25.00%"),
    *("1,234", "passed"),
  ]
  (record,) = records_in(tmp_path)
  assert record["scaled"]["batch_size"] == [256, 64]
  assert (record["majority"], record["standard_error"]) == (0.25, error)

  code, again, _ = call_main(SCRIPT["main"], *flags)
  assert (code, trained, records_in(tmp_path)) == (0, [name], [record])
  assert row in again
  with pytest.raises(FileExistsError):  # The trainer would say what to do.
    call_main(SCRIPT["main"], *flags, "--config.seed=1")


def test_a_run_that_fails_does_not_end_the_others(
  call_main, photographs, tmp_path, trained
):
  names = ["imagenet_mlperf", "imagenet_nvidia"]
  flags = [photographs, "--workdir", tmp_path, "--recipes", ",".join(names)]
  code, out, err = call_main(SCRIPT["main"], *flags)
  assert (code, trained) == (1, names)
  assert err == "error: the loss of step 3 is not finite\n"
  assert "| failed: the loss of step 3 is not finite |" in out
  assert "1 of 2 have passed" in out
  verdicts = [record["verdict"] for record in records_in(tmp_path)]
  assert verdicts == ["failed: the loss of step 3 is not finite", "passed"]


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (
      ["--recipes=imagenet_rsb_a4"],
      "'imagenet_rsb_a4': did you mean 'imagenet_rsb_a3'?",
    ),
    (["--epochs=0"], "--epochs is 0.0: use a number above 0"),
    (["--pixels=0"], "--pixels is 0: use 1 or more"),
    (["--epoch=1"], "--epoch=1 is not a flag"),
  ],
)
def test_a_wrong_flag_ends_with_a_sentence(
  flags, sentence, call_main, photographs, tmp_path
):
  flags = [photographs, "--workdir", tmp_path / "runs", *flags]
  code, _, err = call_main(SCRIPT["main"], *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert sentence in err
  assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_not_there_ends_with_a_sentence(call_main, tmp_path):
  code, _, err = call_main(SCRIPT["main"], tmp_path / "none")
  assert (code, err.count("\n")) == (2, 1)
  assert str(tmp_path / "none") in err
