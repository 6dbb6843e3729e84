"""What a command loads, and what it keeps for the next one."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.recipes import ROOT


def python(code, **environment):
  """Runs code in a process without the cache of this one; returns its lines."""
  own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=own | {"JAX_PLATFORMS": "cpu"} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert not result.stderr
  return result.stdout.splitlines()


# Of the heavy ones, what is needed to train and not to say how.
HEAVY = (
  "flax, grain, jax, matplotlib, optax, orbax, sklearn, tensorboardX, tqdm, "
  "torch"
)


@pytest.mark.parametrize(
  "command", ["train.py --help", "-m flax_resnet models --help"]
)
def test_help_loads_little(command):
  code = f"""
import runpy, sys
program = {command!r}.split()
module = program.pop(0) == "-m"
sys.argv = program if module else ["train.py", *program]
try:
  run = runpy.run_module if module else runpy.run_path
  run("flax_resnet" if module else "train.py", run_name="__main__")
except SystemExit:
  pass
print(*(name for name in {HEAVY!r}.split(", ") if name in sys.modules))
"""
  *_, loaded = python(code)
  assert loaded == ""


# A shell's background jobs ignore Ctrl-C, and so would what they start.
HEED_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize(
  "command",
  ["train.py --config configs/digits.py", "-m flax_resnet models"],
)
def test_ctrl_c_while_jax_is_imported(command, tmp_path):
  (tmp_path / "jax").mkdir()
  (tmp_path / "jax" / "__init__.py").write_text(
    "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", HEED_CTRL_C, *command.split()],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "importing\n"
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 130
  assert err == "interrupted: nothing was in progress\n"


WHERE = """
import jax
from flax_resnet import command
command.keep_what_is_compiled()
print(jax.config.jax_compilation_cache_dir)
"""


def test_compiled_programs_are_kept_below_the_users_cache(tmp_path):
  wanted = tmp_path / "flax_resnet" / "xla"
  code = WHERE + "jax.jit(lambda x: x + 1)(1)\n"
  assert python(code, XDG_CACHE_HOME=str(tmp_path)) == [str(wanted)]
  assert list(wanted.glob("jit__lambda*"))
  (line,) = python(WHERE, XDG_CACHE_HOME="", HOME=str(tmp_path))
  assert pathlib.Path(line) == tmp_path / ".cache" / "flax_resnet" / "xla"


MEMORY = """
import jax.numpy as jnp, numpy as np, sys
from flax_resnet import command
with command.exits():
  {}
"""


@pytest.mark.parametrize(
  "code", ["np.zeros(2**50)", "jnp.zeros(2**46).block_until_ready()"]
)
def test_too_little_memory_is_told(code):
  ended = subprocess.run(
    [sys.executable, "-c", MEMORY.format(code)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 1
  assert ended.stderr.startswith("error: there is not enough memory (")
  assert "smaller config.batch_size" in ended.stderr
  assert ended.stderr.count("\n") == 1


def test_a_folder_that_the_user_names_is_kept(tmp_path):
  line = python(WHERE, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
  assert line == [str(tmp_path)]


def test_without_a_place_to_write_nothing_is_kept(tmp_path):
  file = tmp_path / "file"
  file.touch()
  assert python(WHERE, XDG_CACHE_HOME=str(file)) == ["None"]


def test_the_environment_does_not_grow_with_every_call():
  code = """
import os
from flax_resnet import command
for _ in range(3):
  with command.exits():
    pass
  print(os.environ["PYTHONWARNINGS"])
"""
  assert (
    python(code, PYTHONWARNINGS="ignore:x")
    == ["ignore:x,ignore:resource_tracker"] * 3
  )
