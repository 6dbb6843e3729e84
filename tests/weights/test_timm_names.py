"""The tensors of every residual network of timm, by name and shape."""

import pytest

import flax_resnet as fr
from flax_resnet.models.variables import variable_shapes
from flax_resnet.weights.names import CONVENTIONS
from flax_resnet.weights.state_dict import shapes_in_file
from tests.weights import cases, timm_names

ROWS = timm_names.read()


def test_the_table_is_of_all_networks_of_timm_that_there_are():
  assert len(ROWS) == 109
  assert ROWS.keys() <= set(fr.list_models())


TRACED = {}


def shapes_of(model):
  """Returns the shapes of a network, whose blocks after the second repeat it.

  Networks that differ only in depth are traced once.
  """
  if model.block_widths:
    return variable_shapes(model)
  short = model.clone(stage_sizes=[min(size, 2) for size in model.stage_sizes])
  # Equal networks need not be equal to Python: functions in them are not.
  if (key := repr(short)) not in TRACED:
    TRACED[key] = variable_shapes(short)
  shapes = TRACED[key]
  repeated = {}
  for collection, tree in shapes.items():
    blocks = {
      f"stage{stage}_block{number}": tree[f"stage{stage}_block2"]
      for stage, size in enumerate(model.stage_sizes, start=1)
      for number in range(3, size + 1)
    }
    repeated[collection] = tree | blocks
  return repeated


@pytest.mark.parametrize("name", ROWS)
def test_names_and_shapes_are_those_of_timm(name):
  model = fr.create_model(name)
  convention = "timm_v2" if model.pre_activation else "torchvision"
  tensors = shapes_in_file(shapes_of(model), model, CONVENTIONS[convention])
  assert timm_names.row(tensors) == ROWS[name]


@pytest.mark.deep
def test_the_table_is_that_of_the_installed_timm():
  cases.whole("resnet50").skip_without_packages()
  assert dict(timm_names.of_timm()) == ROWS
