"""The README: short, with commands, a tree and results that are there."""

import re

import pytest

import flax_resnet as fr
from tests.pages import code, fences, README
from tests.recipes import RECIPES, ROOT


def tree() -> list[str]:
  """Returns the lines of the tree of the repository."""
  return next(
    text for _, text in fences(README) if "flax_resnet/\n" in text
  ).splitlines()


def test_is_short():
  assert len(README.read_text().splitlines()) <= 200


def test_names_the_commands_that_do_everything():
  blocks = [text.strip() for kind, text in fences(README) if kind == ""]
  assert (
    blocks[0]
    == "pip install -e . && python train.py --config configs/digits.py"
  )
  assert "pip install -e '.[test]' && pytest" in blocks
  assert "python docs/reference.py" in README.read_text()


def test_the_first_screen_has_the_picture_of_the_run():
  first = README.read_text().splitlines()[:20]
  assert any("](docs/digits.png)" in line for line in first)


def test_the_code_runs(capsys):
  # One block: a tenth of the shapes to compile.
  one_block = '"resnet50", stage_sizes=(1,), stage_features=(8,)'
  names = {}
  for text in code(README):
    short = text.replace('"resnet50"', one_block)
    exec(compile(short, "README.md", "exec"), names)
  out = capsys.readouterr().out
  assert out == "(8, 10) {'stem': (8, 32, 32, 8), 'stage1': (8, 16, 16, 32)}\n"


def test_the_tree_names_what_is_in_the_package():
  listed = [
    re.split(r"\s{2,}", line.removeprefix("├── ").removeprefix("└── "))[0]
    for line in tree()
    if line.startswith(("├── ", "└── "))
  ]
  there = [
    path.name + ("/" if path.is_dir() else "")
    for path in (ROOT / "flax_resnet").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
  ]
  assert sorted(listed) == sorted(there)


def test_the_tree_names_what_is_in_the_repository():
  listed = [line.split()[0] for line in tree() if line[0].isalpha()]
  assert all((ROOT / name).exists() for name in listed), listed
  there = {path.parent.name for path in ROOT.glob("*/*.py")}
  assert there <= {name.rstrip("/") for name in listed}


def test_every_kind_of_name_is_explained():
  page = (ROOT / "docs" / "models.md").read_text()
  for name in fr.list_models():
    stem = re.match(r"[a-z_]+?(?=_?\d|$)", name)
    assert stem and f"`{stem[0]}" in page, name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_in_the_table(path):
  assert f"[`{path.stem}`](configs/{path.name})" in README.read_text()
