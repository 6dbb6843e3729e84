"""What a command imports, keeps for the next one, and ends with."""

import os
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.cli import flags
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


# Slow to import, and needed to train or to draw, but not to print a help.
SLOW = (
  "flax, grain, jax, matplotlib, numpy, optax, orbax, sklearn, tensorboardX, "
  "tensorflow_datasets, torch, tqdm"
)


@pytest.mark.parametrize(
  "command", ["train.py --help", "-m flax_resnet models --help"]
)
def test_help_imports_little(command):
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
print(*(name for name in {SLOW!r}.split(", ") if name in sys.modules))
"""
  *_, imported = python(code)
  assert imported == ""


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


def test_compiled_programs_are_kept_below_the_users_cache(tmp_path):
  code = """
import jax
from flax_resnet.cli.flags import enable_compilation_cache
enable_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x + 1)(1)
"""
  folder = tmp_path / "flax_resnet" / "xla"
  assert python(code, XDG_CACHE_HOME=str(tmp_path)) == [str(folder)]
  assert list(folder.glob("jit__lambda*"))


@pytest.fixture
def cache_folder(monkeypatch):
  """Returns where programs are kept, in an environment, if JAX does not say."""
  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs

  def enabled(folder, **environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, str(value))
    jax.config.update("jax_compilation_cache_dir", folder)
    flags.enable_compilation_cache()
    return jax.config.jax_compilation_cache_dir

  yield enabled
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_folders_of_compiled_programs(cache_folder, tmp_path):
  home = {"XDG_CACHE_HOME": "", "HOME": tmp_path}
  inside = tmp_path / ".cache" / "flax_resnet" / "xla"
  assert cache_folder(None, **home) == str(inside)
  assert cache_folder("/a/folder/of/the/user", **home) == (
    "/a/folder/of/the/user"
  )
  (tmp_path / "file").touch()
  assert cache_folder(None, XDG_CACHE_HOME=tmp_path / "file") is None


@pytest.mark.parametrize(
  "allocate",
  [
    lambda: np.zeros(2**50),
    lambda: jnp.zeros(2**46).block_until_ready(),
  ],
)
def test_too_little_memory_is_one_sentence(call_main, allocate):
  def main():
    with flags.exit_codes():
      allocate()

  code, _, err = call_main(main)
  assert (code, err.count("\n")) == (1, 1)
  assert err.startswith("error: there is not enough memory (")


def test_an_error_of_this_package_keeps_its_traceback():
  with pytest.raises(ZeroDivisionError), flags.exit_codes():
    _ = 1 / 0


def test_an_error_is_one_short_line(call_main):
  def main():
    with flags.exit_codes():
      raise flags.InputError("a\nb \x1b[2J" + "c" * 5_000)

  code, _, err = call_main(main)
  assert (code, err.count("\n")) == (2, 1)
  assert err.startswith("error: a b \\x1b[2Jccc")
  assert len(err) < 1_600


def test_a_warning_of_this_package_is_one_line():
  with flags.exit_codes():
    ours, theirs = (
      warnings.formatwarning("a\nb", UserWarning, file, 1)
      for file in (flags.__file__, "/elsewhere.py")
    )
  assert ours == "warning: a b\n"
  assert theirs.startswith("/elsewhere.py:1: UserWarning: a\nb")


def test_the_environment_does_not_grow_with_every_call(monkeypatch):
  monkeypatch.setenv("PYTHONWARNINGS", "ignore:x")
  for _ in range(3):
    with flags.exit_codes():
      pass
    assert os.environ["PYTHONWARNINGS"] == "ignore:x,ignore:resource_tracker"
