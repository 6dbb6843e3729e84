"""The README holds: its Python runs, its links and its keys exist."""

import re
import shlex

import pytest

from flax_resnet.training import load_recipe
from tests.recipes import RECIPES, ROOT

README = (ROOT / "README.md").read_text()


def blocks(language):
  fences = re.findall(
    r"^```([\w ]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
  )
  return [text for kind, text in fences if kind == language]


def test_the_first_lines_are_the_commands():
  first = [block.strip() for block in blocks("")[:2]]
  assert first == [
    "pip install -e . && python train.py --config configs/digits.py",
    "pip install -e '.[test]' && pytest",
  ]


def test_the_python_runs(capsys):
  names = {}
  for code in blocks("python"):
    exec(compile(code, "README.md", "exec"), names)
  assert names["logits"].shape == (8, 1000)  # Of the NNX module.
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
    if "--config " in command
  ]
  assert len(commands) >= 4
  for command in commands:
    words = shlex.split(command)
    path = words[words.index("--config") + 1]
    prefix = "--config."
    keys = [w.removeprefix(prefix) for w in words if w.startswith(prefix)]
    load_recipe(ROOT / path, keys)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_in_the_table(path):
  assert f"[`{path.stem}`](configs/{path.name})" in README
