"""The README holds: its Python runs, its links and its keys exist."""

import re
import runpy
import shlex

import pytest

from flax_resnet.training import load_recipe
from tests.recipes import RECIPES, ROOT

README = (ROOT / "README.md").read_text()
PAGES = [
  ROOT / "README.md",
  ROOT / "SECURITY.md",
  *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(language, text=README):
  fences = re.findall(
    r"^```([\w ]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
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


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_python_of_other_pages_runs(page):
  names = {}
  for code in blocks("python", page.read_text()):
    exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
  targets = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
  for target in targets:
    assert (page.parent / target).exists(), target


def test_commands_name_recipes_and_keys_that_exist():
  commands = [
    command
    for page in PAGES
    for block in blocks("", page.read_text())
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


def test_the_reference_is_what_the_docstrings_say():
  pytest.importorskip("griffe")  # Of the extra "dev".
  script = runpy.run_path(str(ROOT / "docs" / "reference.py"))
  assert script["PAGE"].read_text() == script["render"](), (
    "run python docs/reference.py"
  )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_in_the_table(path):
  assert f"[`{path.stem}`](configs/{path.name})" in README
