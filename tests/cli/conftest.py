"""A run and a weight file that the tests of this folder share."""

import functools

import jax
import pytest
from safetensors.numpy import save_file

from flax_resnet import __main__ as command
from flax_resnet import sharding
from flax_resnet.training import train
from tests import recipes
from tests.weights import cases


@pytest.fixture
def call(call_main):
  """Runs a verb; returns its exit code and its output."""
  return functools.partial(call_main, command.main)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, data_dir):
  """A short run on digits, with thin stages."""
  path = tmp_path_factory.mktemp("run")
  mesh = sharding.make_mesh(jax.devices()[:1])
  train(recipes.tiny(data_dir), path, mesh)
  return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
  """ResNet-20 for CIFAR-10 under akamaster's names."""
  case = cases.Case("cifar_resnet20", (), "cifar", fields=())
  path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
  save_file(cases.filled(cases.our_shapes(case)), path)
  return path
