"""The README holds: its Python runs, its links and its keys exist."""

import re

import pytest

from flax_resnet.training import load_recipe
from tests.recipes import RECIPES, ROOT

README = (ROOT / "README.md").read_text()


def blocks(language):
  fences = re.findall(
    r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
  )
  return [text for kind, text in fences if kind == language]


def test_the_first_lines_are_the_commands():
  first = [block.strip() for block in blocks("")[:2]]
  assert first == [
    "pip install -e . && python train.py --config configs/digits.py",
    "pip install -e '.[test]' && pytest",
  ]


def test_the_python_runs(capsys):
  (code,) = blocks("python")
  exec(compile(code, "README.md", "exec"), {})
  out = capsys.readouterr().out
  assert out.startswith("(8, 10) {'stem': (8, 32, 32, 64), 'stage1': (8, 16, 1")


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_links_lead_somewhere(target):
  assert (ROOT / target).exists()


def test_commands_name_recipes_and_keys_that_exist():
  commands = [
    command
    for block in blocks("")
    for command in block.replace("\\\n", " ").splitlines()
    if "train.py" in command
  ]
  assert len(commands) >= 3
  for command in commands:
    path = re.search(r"--config (\S+)", command).group(1)
    load_recipe(ROOT / path, re.findall(r"--config\.(\S+)", command))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_in_the_table(path):
  assert f"[`{path.stem}`](configs/{path.name})" in README
