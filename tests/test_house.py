"""The rules of the house: imports run one way, and TensorFlow stays out."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.recipes import ROOT

PACKAGE = ROOT / "flax_resnet"
# What each room may import of this package.
ROOMS = {
  "models": set(),
  "weights": {"models"},
  "data": set(),
  "sharding": set(),
  "training": {"models", "weights", "data", "sharding"},
  "predictor": {"models", "weights", "data"},
  "serialization": {"predictor"},
  "insight": {"models", "training", "sharding"},
}


def imports(path: pathlib.Path) -> set[str]:
  """Returns the rooms of this package that a file imports."""
  rooms = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    rooms |= {
      name.split(".")[1] for name in names if name.startswith("flax_resnet.")
    }
  return rooms


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
  files = [*(PACKAGE / room).glob("*.py"), PACKAGE / f"{room}.py"]
  for path in filter(pathlib.Path.exists, files):
    assert imports(path) <= ROOMS[room] | {room}, path


def test_the_check_of_imports_sees_them():
  assert imports(PACKAGE / "training" / "run.py") >= {"models", "data"}


def test_training_needs_no_tensorflow(tmp_path):
  code = """
import sys
from flax_resnet.training import loop
from flax_resnet.data import digits, prepared
digits.prepare(sys.argv[1])
prepared.TFDSSource("digits", "test", sys.argv[1])[0]
assert "tensorflow" not in sys.modules
"""
  command = [sys.executable, "-c", code, str(tmp_path)]
  subprocess.run(command, cwd=ROOT, check=True)


def test_the_block_is_the_first_class_of_its_file():
  tree = ast.parse((PACKAGE / "models" / "blocks.py").read_text())
  first = next(node for node in tree.body if isinstance(node, ast.ClassDef))
  assert first.name == "BasicBlock"
