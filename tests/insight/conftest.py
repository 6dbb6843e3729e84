"""Two short runs on digits that the tests of this folder share."""

import functools

import jax
import matplotlib
import pytest

from flax_resnet import __main__ as command
from flax_resnet import sharding
from flax_resnet.training import train
from tests import recipes


@pytest.fixture(scope="session")
def runs(tmp_path_factory, data_dir):
  """A folder with the runs "projection", with skips, and "none"; 4 steps."""
  folder = tmp_path_factory.mktemp("runs")
  for shortcut in ("projection", "none"):
    changes = {"model.shortcut": shortcut, **recipes.FEW_DIGITS}
    config = recipes.changed(recipes.tiny(data_dir), changes)
    train(config, folder / shortcut, sharding.make_mesh(jax.devices()[:1]))
  return folder


@pytest.fixture(scope="package", autouse=True)
def coarse_pictures():
  """Pictures have few pixels: to draw them takes most of the time."""
  with matplotlib.rc_context({"savefig.dpi": 40}):
    yield


@pytest.fixture
def inspect(call_main):
  """Runs `inspect`; returns its exit code and its output."""
  return functools.partial(call_main, command.main, "inspect")
