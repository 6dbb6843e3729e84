"""The rules of the house: imports run one way, and TensorFlow stays out."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.recipes import ROOT

PACKAGE = ROOT / "flax_resnet"
# The rooms from the ground floor up: each imports those below it, and itself.
FLOORS = (
  {"errors"},
  {"schema", "storage", "fonts"},
  {"recipes"},
  {
    "bucket",
    "models",
    "sharding",
    "hosts",
    "plots",
    "onnx_graph",
    "litert",
    "photometric",
  },
  {"weights", "data", "augment"},
  {"training", "predictor"},
  {"export", "insight"},
  {"report"},
  {"cli"},
)
# Of 12 imports inside functions, each says why it is there.
MOST_INNER_IMPORTS = 12


def modules() -> dict[str, pathlib.Path]:
  """Returns the files of the package by their dotted names."""
  return {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
      ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
  }


def imports(path: pathlib.Path) -> set[str]:
  """Returns the modules of this package that a file imports, anywhere in it."""
  known, found = modules(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      full = [f"{node.module}.{alias.name}" for alias in node.names]
      names = [name if name in known else str(node.module) for name in full]
    else:
      continue
    found |= {name for name in names if name.startswith("flax_resnet")}
  return found & known.keys()


def room(module: str) -> str:
  return module.split(".")[1] if "." in module else ""


def test_imports_run_one_way():
  floor = {name: n for n, names in enumerate(FLOORS) for name in names}
  for module, path in modules().items():
    if room(module) in ("", "__main__"):  # The public names, and the command.
      continue
    for imported in imports(path):
      ours, theirs = room(module), room(imported)
      assert theirs in ("", ours) or floor[theirs] < floor[ours], (
        f"{module} imports {imported}"
      )


def test_no_two_modules_import_each_other():
  """Directly or by way of others, `TYPE_CHECKING` included."""
  graph = {module: imports(path) for module, path in modules().items()}
  graph.pop("flax_resnet")
  done, path = set(), []

  def visit(module):
    assert module not in path, " imports ".join([*path, module])
    if module not in done:
      path.append(module)
      for imported in sorted(graph.get(module, ())):
        visit(imported)
      done.add(path.pop())

  for module in sorted(graph):
    visit(module)


def test_the_check_of_imports_sees_them(tmp_path):
  path = tmp_path / "module.py"
  path.write_text(
    "from flax_resnet import data\n"
    "def f():\n  from flax_resnet.models.resnet import ResNet\n"
  )
  assert imports(path) == {"flax_resnet.data", "flax_resnet.models.resnet"}


def test_imports_stand_at_the_top():
  inner = [
    f"{module}:{node.lineno}"
    for module, path in modules().items()
    for function in ast.walk(ast.parse(path.read_text()))
    if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    for node in ast.walk(function)
    if isinstance(node, (ast.Import, ast.ImportFrom))
  ]
  assert len(inner) <= MOST_INNER_IMPORTS, inner


def test_every_model_can_be_found_by_its_name():
  import flax_resnet

  text = (PACKAGE / "models" / "zoo.py").read_text()
  for name in flax_resnet.list_models():
    assert f'"{name}"' in text


def test_training_needs_no_tensorflow(tmp_path):
  code = """
import sys
from flax_resnet.training import loop
from flax_resnet.data import tfds
tfds.prepare_digits(sys.argv[1])
tfds.TFDSSource("digits", "test", sys.argv[1])[0]
assert "tensorflow" not in sys.modules
"""
  command = [sys.executable, "-c", code, str(tmp_path)]
  subprocess.run(command, cwd=ROOT, check=True)


def test_the_block_is_the_first_class_of_its_file():
  tree = ast.parse((PACKAGE / "models" / "blocks.py").read_text())
  first = next(node for node in tree.body if isinstance(node, ast.ClassDef))
  assert first.name == "BasicBlock"


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc"])
def test_every_module_has_a_noun_for_its_name(word):
  assert not list(PACKAGE.rglob(f"{word}.py"))
