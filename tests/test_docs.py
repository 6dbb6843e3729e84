"""Every command of the README and of docs/ runs, shortened."""

import functools
import itertools
import re
import runpy
import shlex

import jax
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import __main__ as verbs
from flax_resnet.models.start import initial_variables
from flax_resnet.weights import files
from tests.recipes import ROOT
from tests.test_readme import blocks

ENGLISH = ROOT / "docs" / "skip_connections.md"
KOREAN = ROOT / "docs" / "skip_connections.ko.md"
# Instead of what needs a download or minutes: the digits and thin networks.
SHORT = {
  "num_epochs": None,
  "num_steps": 2,
  "steps_per_call": 1,
  "batch_size": 128,
  "eval_batch_size": 360,
  "log_every": 1,
  "eval_every": 2,
  "checkpoint_every": 2,
  "model.num_classes": 10,
  "model.stage_sizes": (1, 1, 1),
  "model.stage_features": (4, 4, 8),
  "data.name": "digits",
  "data.train_split": "train",
  "data.eval_split": "test",
  "data.image_size": 8,
  "data.random_resized_crop": False,
  "data.in_memory": True,
  "augment.mean": (0.3,),
  "augment.std": (0.35,),
}
# And for a folder: photographs of five classes, in train and val.
FOLDER = {
  **{k: v for k, v in SHORT.items() if not k.startswith(("data.", "augment."))},
  "batch_size": 32,
  "model.num_classes": 5,
  "data.image_size": 16,
}
NAMES = {
  "resnet18": "cifar_resnet8",
  "resnet50": "cifar_resnet8",
  "cifar_resnet20": "cifar_resnet8",
  "cifar_resnet56": "cifar_resnet8",
  "cifar_resnet110": "cifar_resnet8",
  "--config.init_from=hf-hub:timm/resnet50.a1_in1k": (
    "--config.init_from=published.safetensors"
  ),
}
# Not run here: they change the environment, or need TensorFlow and a download,
# or another's weights; the tests of these verbs have their own.
ELSEWHERE = (
  "pip install",
  "python -m flax_resnet prepare",
  "python -m flax_resnet evaluate --weights resnet20-12fca82f.th",
  "python benchmarks/",
  "python examples/",  # tests/test_examples.py
)


def commands(page):
  """Returns the commands of a page, each on one line, in order."""
  lines = [
    line.split("   #")[0].strip()
    for block in blocks("", page.read_text())
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("python ", "pip "))
  ]
  return [line for line in lines if not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with what the commands of the pages name."""
  path = tmp_path_factory.mktemp("place")
  (path / "configs").symlink_to(ROOT / "configs")
  rng = np.random.default_rng(0)
  for name in ("photos", "more"):
    (path / name).mkdir()
    for i in range(3):
      pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
      Image.fromarray(pixels).save(path / name / f"{i}.png")
  for split, label in itertools.product(("train", "val"), range(5)):
    (path / "DIR" / split / str(label)).mkdir(parents=True)
    for i in range(8):
      pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
      file = path / "DIR" / split / str(label) / f"{i}.jpg"
      Image.fromarray(pixels).save(file)
  (path / "photo.jpg").write_bytes((path / "photos/0.png").read_bytes())
  model = fr.create_model("cifar_resnet8")
  drawn = initial_variables(model, jax.random.key(0), (32, 32, 3))
  tensors = fr.to_torch(drawn, model)
  files.write(path / "resnet50.safetensors", tensors)
  files.write_checkpoint(path / "finetuned", drawn)
  fields = {
    key: SHORT[f"model.{key}"] for key in ("stage_sizes", "stage_features")
  }
  model = fr.create_model("resnet50", **fields)
  drawn = initial_variables(model, jax.random.key(0), (8, 8, 1))
  files.write(path / "published.safetensors", fr.to_torch(drawn, model))
  return path


@pytest.fixture
def run(call_main, place, data_dir, monkeypatch):
  """Runs a command in this process, shortened."""
  monkeypatch.chdir(place)
  monkeypatch.setenv("XDG_CACHE_HOME", str(place))
  train = runpy.run_path(str(ROOT / "train.py"))["main"]

  def run(command):
    words = [NAMES.get(word, word) for word in shlex.split(command)[1:]]
    if words[0] == "train.py":
      short = {**SHORT, "data.data_dir": data_dir}
      if "folder" in command:
        short = FOLDER
      kept = [
        word
        for word in words[1:]
        if word.removeprefix("--config.").partition("=")[0] not in short
      ]
      short = [f"--config.{key}={value}" for key, value in short.items()]
      return call_main(train, *kept, *short)
    assert words[:2] == ["-m", "flax_resnet"]
    images = ["--images", "32"] if words[2] == "inspect" else []
    return call_main(verbs.main, *words[2:], *images)

  return functools.cache(run)


@pytest.mark.parametrize(
  "page",
  [
    ROOT / "README.md",
    # Four minutes: pictures of many runs.
    pytest.param(ENGLISH, marks=pytest.mark.slow, id="skip_connections"),
    ROOT / "docs/data.md",
    *sorted((ROOT / "docs").glob("from_*.md")),
  ],
  ids=lambda page: page.stem,
)
def test_every_command_runs(page, run):
  found = commands(page)
  if any("runs/digits" in command for command in found):
    # The first line of the README, behind its "pip install".
    found.insert(0, "python train.py --config configs/digits.py")
  for command in found:
    if "configs/imagenet_resnet50.py --config.data.data_dir=DIR" in command:
      continue  # Of the pages that name it, one runs it.
    code, out, err = run(command)
    assert (code, err) == (0, ""), command
    assert out, command


def test_pages_have_the_commands_that_are_run():
  assert len(commands(ROOT / "README.md")) >= 8
  assert len(commands(ENGLISH)) >= 8


def test_the_korean_page_has_the_same_commands_and_pictures():
  assert commands(KOREAN) == commands(ENGLISH)
  figures = re.compile(r"\]\((\S+\.png)\)")
  assert figures.findall(KOREAN.read_text()) == figures.findall(
    ENGLISH.read_text()
  )


def test_the_korean_page_has_the_same_numbers():
  def numbers(page):
    cells = [x for x in page.read_text().splitlines() if x.startswith("|")]
    return re.findall(r"\d[\d,.]*", "\n".join(cells))

  assert numbers(KOREAN) == numbers(ENGLISH)
