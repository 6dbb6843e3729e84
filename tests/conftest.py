"""Every test sees eight CPU devices, and shapes are checked by jaxtyping."""

import os
import sys
import tempfile
import types

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # To compile takes most of the time of the tests.
    "--xla_backend_optimization_level=0",
  ]
)
# Tests in other processes, and processes that tests start, reuse what one has
# compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory()  # Until this process ends.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

from jaxtyping import install_import_hook

import tests.typechecking  # noqa: F401 - the hook looks it up by this name.

# Before the package is imported anywhere: its annotations become checks.
install_import_hook("flax_resnet", "tests.typechecking.check")

import jax
from ml_collections import ConfigDict
import pytest

from flax_resnet import sharding
from flax_resnet.training import loop
from tests import recipes

# Shapes of different rank meet by intention or not at all.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def no_curves():
  """Runs draw no curves, which takes a second; `whole` of test_loop does."""
  draw = lambda rows, title, path: path.touch()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "plots", types.SimpleNamespace(training_curves=draw))
    yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """A TFDS folder of this test process with the digits in it."""
  from flax_resnet.data import tfds

  path = tmp_path_factory.mktemp("tfds")
  tfds.prepare_digits(str(path))
  return str(path)


@pytest.fixture
def config(data_dir) -> ConfigDict:
  """A tiny ResNet on digits: compiles in seconds, 4 steps."""
  return recipes.tiny(data_dir)


@pytest.fixture
def call_main(monkeypatch, capsys):
  """Runs a command in this process; returns its exit code and its output."""

  def call(main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    code = 0
    try:
      main()
    except SystemExit as end:
      code = end.code
    return code, *capsys.readouterr()

  return call


@pytest.fixture
def mesh():
  """One device."""
  return sharding.make_mesh(jax.devices()[:1])
