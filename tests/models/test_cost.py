import csv

import pytest

import flax_resnet as fr
from flax_resnet.models.cost import cost, known_costs, TABLE
from tests.models import costs


def test_a_loop_costs_as_much_as_its_blocks_one_by_one():
  model = fr.create_model("resnet50", stage_sizes=(3, 2), stage_features=(4, 8))
  assert cost(model.clone(scan=True), 32) == cost(model, 32)


def test_an_image_need_not_be_a_square():
  model = fr.create_model("resnet18", stage_sizes=(1, 1), stage_features=(4, 8))
  square, wide = cost(model, 64), cost(model, (64, 128))
  assert cost(model, (64, 64)) == square
  assert wide.parameters == square.parameters
  assert wide.activations == 2 * square.activations
  assert wide.activations == cost(model, (128, 64)).activations


@pytest.mark.parametrize(
  ("name", "millions"),
  [("resnet50", 11.1), ("resnet101", 16.2), ("resnext50_32x4d", 14.4)],
)
def test_activations_are_the_published_ones(name, millions):
  """Radosavovic et al. 2020, Table 4."""
  counted = cost(fr.create_model(name, scan=True), 224)
  assert counted.activations / 1e6 == pytest.approx(millions, abs=0.05)


def test_every_network_has_a_known_cost():
  assert list(known_costs()) == fr.list_models()
  for name in ("resnet18", "cifar_resnet20"):
    assert costs.row(name) == {"name": name, **vars(known_costs()[name])}


@pytest.mark.deep
def test_known_costs_are_those_that_are_counted():
  with TABLE.open(newline="") as file:
    committed = list(csv.DictReader(file))
  counted = [{k: str(v) for k, v in row.items()} for row in costs.rows()]
  assert committed == counted
