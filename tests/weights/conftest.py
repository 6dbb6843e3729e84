"""Weights that the tests of this folder share."""

import pytest

import flax_resnet as fr
from tests.weights import cases

CASE = cases.CASES["cifar_resnet20"]


@pytest.fixture(scope="session")
def state_dict():
  """The state_dict of a ResNet-20 of four blocks, in akamaster's names."""
  return cases.filled(cases.our_shapes(CASE))


@pytest.fixture(scope="session")
def variables(state_dict):
  """Its variables."""
  return fr.from_torch(state_dict, CASE.network())
