"""Short runs on digits that the tests of this folder share."""

import functools

import jax
import pytest

from flax_resnet import __main__ as command
from flax_resnet import sharding
from flax_resnet.training import train
from tests import recipes


@pytest.fixture(scope="session")
def runs(tmp_path_factory, data_dir):
  """A folder with the runs "seed0", "seed1" and "plain"; 4 steps."""
  folder = tmp_path_factory.mktemp("runs")
  for name, changes in (
    ("seed0", {}),
    ("seed1", {"seed": 1}),
    ("plain", {"model.shortcut": "none"}),
  ):
    changes = {**changes, **recipes.FEW_DIGITS, "log_every": 1, "eval_every": 2}
    config = recipes.changed(recipes.tiny(data_dir), changes)
    train(config, folder / name, sharding.make_mesh(jax.devices()[:1]))
  return folder


@pytest.fixture
def report(call_main):
  """Runs `report`; returns its exit code and its output."""
  return functools.partial(call_main, command.main, "report")


@pytest.fixture(scope="session")
def measured(runs):
  """What the page shows of the run "seed0"."""
  from flax_resnet.report.measure import measure

  return measure("seed0", runs / "seed0", keep=4)
