"""The pages hold: links lead somewhere, keys exist, code and commands run."""

import contextlib
import functools
import io
import itertools
import pathlib
import re
import runpy
import shlex
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import __main__ as verbs
from flax_resnet import sharding
from flax_resnet.errors import InputError
from flax_resnet.training import load_recipe
from flax_resnet.training.setup import set_up
from flax_resnet.weights import files
from tests import drawing, pages
from tests.pages import ENGLISH, KOREAN, name_of, PAGES, RUNNABLE
from tests.recipes import changed, ROOT

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
  "model.dtype": "float32",
  "model.num_classes": 10,
  "model.stage_sizes": (1,),
  "model.stage_features": (4,),
  "data.name": "digits",
  "data.train_split": "train",
  "data.eval_split": "test",
  "data.image_size": 16,
  "data.random_resized_crop": False,
  "data.in_memory": True,
  "augment.mean": (0.3,),
  "augment.std": (0.35,),
  # They take as long to compile as all the rest.
  **{
    f"augment.{name}": 0.0
    for name in ("rotation", "translation", "scaling", "shear")
  },
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
# Networks of a few layers in the code of pages.
THIN = {
  '"resnet18"': '"resnet18", stage_sizes=(1,), stage_features=(8,)',
  '"cifar_resnet20"': '"cifar_resnet8", stage_features=(4, 4, 8)',
}
# Not run here: they change the environment, wait for other processes, need
# TensorFlow and a download, or another's weights; or have tests of their own.
ELSEWHERE = (
  "pip ",
  "python -m flax_resnet prepare",  # tests/test_prepare.py
  "python -m flax_resnet models",  # tests/cli/test_verbs.py
  "python -m flax_resnet evaluate --weights resnet20-12fca82f.th",
  "python -m flax_resnet evaluate --weights resnet50.a1_in1k",
  "python -m flax_resnet convert runs/photos",  # tests/cli/test_verbs.py
  "python -c 'import timm",  # tests/weights/test_publish.py
  # tests/insight/test_experiments.py
  "python -m flax_resnet inspect --weights cifar_resnet20.cifar10",
  "python benchmarks/",
  "python examples/",  # tests/test_examples.py
  "python docs/reference.py",  # Below.
)
DIGITS = "python train.py --config configs/digits.py"
# Compiled for long, or trained by what is: these run with -m deep only.
LONG = re.compile(
  r"configs/(imagenet|cifar10|fashion_mnist)|runs/fashion_mnist"
  r"|runs/(plain|resnet)\d|--init"
)

# And these are run by others, with other numbers: only their keys are checked.
ALIKE = re.compile(r"runs/\w*(56|110|unnormalized)")


def runnable(text):
  """Returns the commands of a shell block that are run here."""
  return [
    command
    for command in pages.commands(text)
    if re.match(r"(\w+=\S+ )?python ", command)
    and not command.startswith(ELSEWHERE)
    and "--coordinator" not in command
    and not ALIKE.search(command)
  ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with what the commands of the pages name."""
  path = tmp_path_factory.mktemp("folder")
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
  images = sorted((path / "DIR").rglob("*.jpg"))
  lines = [f"{each.relative_to(path)},{each.parent.name}\n" for each in images]
  (path / "labels.csv").write_text("".join(["path,label\n", *lines]))
  thin = {
    key: SHORT[f"model.{key}"] for key in ("stage_sizes", "stage_features")
  }
  for file, model, image_shape in (
    ("resnet50", fr.create_model("cifar_resnet8"), (1, 32, 32, 3)),
    ("published", fr.create_model("resnet50", **thin), (1, 16, 16, 1)),
  ):
    variables = drawing.variables_of(model, image_shape)
    tensors = fr.to_torch(variables, model)
    files.write(path / f"{file}.safetensors", tensors)
  return path


@pytest.fixture(scope="module")
def results():
  """Exit code and output of each command that was run, by its words."""
  return {}


@pytest.fixture
def run(call_main, folder, data_dir, monkeypatch, results):
  """Runs a command in this process, shortened; the same one only once."""
  monkeypatch.chdir(folder)
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
  main = runpy.run_path(str(ROOT / "train.py"))["main"]

  def run_once(main, *words):
    if words not in results:
      results[words] = call_main(main, *words)
    return results[words]

  def run(command):
    words = [NAMES.get(word, word) for word in shlex.split(command)]
    words = words[words.index("python") + 1 :]
    if words[0] != "train.py":
      assert words[:2] == ["-m", "flax_resnet"], command
      images = ["--images", "32"] if words[2] == "inspect" else []
      return run_once(verbs.main, *words[2:], *images)
    workdir = pathlib.Path("runs", pathlib.Path(words[2]).stem)
    if "--workdir" in words:
      at = words.index("--workdir")
      workdir = pathlib.Path(words[at + 1])
      del words[at : at + 2]
    short = {**SHORT, "data.data_dir": data_dir}
    if "folder" in command:
      short = FOLDER
    words = [
      word
      for word in words[1:]
      if word.removeprefix("--config.").partition("=")[0] not in short
    ]
    words += [f"--config.{key}={value}" for key, value in short.items()]
    # Pages train alike under other names, and otherwise under the same one.
    home = pathlib.Path("trained", str(abs(hash(tuple(words)))))
    result = run_once(main, *words, "--workdir", str(home))
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(home, workdir)
    return result

  return run


def run_page(page, run):
  """Runs the code and the commands of a page; returns how many there were."""
  if "runs/digits" in page.read_text():
    assert run(DIGITS)[0] == 0
  names, done = {}, 0
  for kind, text in pages.fences(page):
    if kind == "python" and page != pages.README:  # tests/test_readme.py
      for whole, thin in THIN.items():
        text = text.replace(whole, thin)
      # What it says is not of the command after it.
      with contextlib.redirect_stderr(io.StringIO()):
        exec(compile(text, page.name, "exec"), names)
      done += 1
    for command in runnable(text) if kind == "" else ():
      code, out, err = run(command)
      # A line says how weights want images to be prepared.
      said = err if err.startswith("images are prepared as") else ""
      assert (code, err) == (0, said), command
      assert out, command
      done += 1
  return done


# The Korean page has the commands and the code of the English one.
ONCE = [
  pytest.param(
    page,
    id=name_of(page),
    marks=[pytest.mark.deep] if LONG.search(page.read_text()) else [],
  )
  for page in RUNNABLE
  if page != KOREAN
]


@pytest.mark.parametrize("page", ONCE)
def test_a_page_runs(page, run):
  assert run_page(page, run)


def check_keys(command):
  """Raises InputError unless a run could be made by the keys of a command.

  As training does, but for the data: made-up images instead of a set that is
  not here.
  """
  recipe, changes = pages.recipe_and_changes(command)
  here = [
    "data.name=synthetic",
    "data.train_split=train",
    "data.eval_split=test",
    "data.image_size=32",
    "data.eval_image_size=None",
    "data.in_memory=False",
    "batch_size=96",
    "augment.mean=(0.5,0.5,0.5)",
    "augment.std=(0.5,0.5,0.5)",
  ]
  config = load_recipe(recipe, [*changes, *here])
  if config.model.get("norm_group_size"):
    config.model.norm_group_size = 32
  if config.model.num_classes is None:  # Those of the data.
    config = changed(config, {"model.num_classes": 5})
  set_up(config.to_dict(), sharding.make_mesh(jax.devices()[:1]))


def with_config(page):
  return [c for c in pages.shell(page) if pages.recipe_and_changes(c)]


@pytest.mark.parametrize(
  "page", [page for page in PAGES if with_config(page)], ids=name_of
)
def test_commands_name_recipes_and_keys_that_exist(page):
  for command in sorted(set(with_config(page))):
    check_keys(command)


@pytest.mark.parametrize(
  "change",
  [
    "zzz=3",
    "optim.learning_rate=fast",
    "model.shortcut=zero",
  ],
)
def test_a_key_that_does_not_exist_is_found(change):
  check_keys(DIGITS)
  key = change.partition("=")[0]
  with pytest.raises(InputError, match=f"config.{key} "):
    check_keys(f"{DIGITS} --config.{change}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  assert not pages.broken_links(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_tests_that_are_named_exist(page):
  named = re.findall(
    r"(?<![\w/])((?:benchmarks|examples|docs|tests|configs)/[\w/.]*\w)",
    page.read_text(),
  )
  # Of an older commit, which the page names; and built by docs/reference.py.
  gone = {"docs/reference.md"}
  if page.name == "LOG.md":
    gone |= {
      f"benchmarks/{name}.py" for name in ("onednn", "convolution", "devices")
    }
  assert not [
    path for path in named if path not in gone and not (ROOT / path).exists()
  ]


NOTE = functools.partial(fr.BasicBlock, shortcut="conv", use_bias=True)
# The layers of a page's block that have other names than ours.
RENAMED = {"c1": "conv1", "c2": "conv2", "downsample": "shortcut"}


@pytest.mark.parametrize(
  ("page", "name", "ours"),
  [
    (pages.README, "Block", fr.BasicBlock(3)),
    (ENGLISH, "ResidualBlock", NOTE(8, 1)),
    (ENGLISH, "ResidualBlock", NOTE(8, 2)),
  ],
)
def test_the_block_of_a_page_is_the_basic_block(page, name, ours):
  names = {}
  exec(pages.code(page)[0], names)
  block = names[name](*([8, ours.strides] if page == ENGLISH else [3]))
  x = drawing.normal(0, (4, 6, 5, 3))
  variables = drawing.variables_of(ours, x.shape)
  params = dict(variables["params"])
  if page == ENGLISH:
    params["shortcut"] = params["shortcut"]["conv"]
    params |= {theirs: params.pop(own) for theirs, own in RENAMED.items()}
  theirs = {**variables, "params": params}
  for train in (False, True):
    given = {"train": train, "mutable": ["batch_stats"]}
    wanted, wanted_updates = ours.apply(variables, x, **given)
    y, updates = block.apply(theirs, x, **given)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5),
      updates,
      wanted_updates,
    )


def test_the_korean_page_has_the_same_commands_code_and_pictures():
  assert pages.shell(KOREAN) == pages.shell(ENGLISH)
  assert pages.code(KOREAN) == pages.code(ENGLISH)
  figures = re.compile(r"\]\((\S+\.png)\)")
  assert figures.findall(KOREAN.read_text()) == figures.findall(
    ENGLISH.read_text()
  )


def test_the_korean_page_has_the_same_numbers():
  def numbers(page):
    cells = [x for x in page.read_text().splitlines() if x.startswith("|")]
    return re.findall(r"\d[\d,.]*", "\n".join(cells))

  assert numbers(KOREAN) == numbers(ENGLISH)


def test_the_reference_lists_this_package_alone():
  griffe = pytest.importorskip("griffe")  # Of the extra "dev".
  script = runpy.run_path(str(ROOT / "docs" / "reference.py"))
  package = griffe.load("flax_resnet", search_paths=[ROOT])
  names = script["public_names"](package)
  assert {"create_model", "ResNet", "from_pretrained"} <= set(names)
  assert all(getattr(fr, n).__module__.startswith("flax_resnet") for n in names)
  page = script["render"]()
  assert all(f"### {name}\n" in page for name in names)
  modules = re.findall(r"^## \[([\w.]+)\]", page, re.MULTILINE)
  assert "flax_resnet.models.blocks" in modules
  assert all(name.startswith("flax_resnet.") for name in modules)
