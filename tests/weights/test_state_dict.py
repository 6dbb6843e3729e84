"""From a state_dict of PyTorch to variables, and back."""

import dataclasses

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.weights import names, WeightsError
from tests.weights import cases
from tests.weights.conftest import CASE


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  "name",
  [
    *("resnet50d", "resnetrs50", "resnetv2_50", "transformers18"),
    *("cifar_resnet18", "cifar_plain20", "wrn_40_4"),
    *("senet154", "ecaresnetlight", "resnet50_gn", "resnetv2_50d_evos"),
    *("resnetv2_50d_frn", "resnest50d_1s4x24d"),
  ],
)
def test_a_round_trip_is_the_same_bits(name):
  case = cases.CASES[name]
  features = ("stage_features", (64, 32, 64, 32)[: len(case.sizes)])
  case = dataclasses.replace(case, fields=(*case.fields, features))
  model = case.network()
  state_dict = cases.filled(cases.our_shapes(case))
  assert names.recognize(state_dict) is names.CONVENTIONS[case.names]
  back = fr.to_torch(fr.from_torch(state_dict, model), model, names=case.names)
  assert back.keys() == state_dict.keys()
  for key, value in state_dict.items():
    np.testing.assert_array_equal(back[key], value, strict=True)
    assert back[key].flags.c_contiguous, key


def test_a_prefix_is_left_out(state_dict):
  model = CASE.network()
  prefixed = {f"module.{key}": value for key, value in state_dict.items()}
  assert_same(fr.from_torch(state_dict, model), fr.from_torch(prefixed, model))


def test_a_scanned_network_has_the_same_state_dict(state_dict):
  model = CASE.network().clone(scan=True)
  variables = fr.from_torch(state_dict, model)
  assert "stage2_blocks" in variables["params"]
  back = fr.to_torch(variables, model, names="cifar")
  for key, value in state_dict.items():
    np.testing.assert_array_equal(back[key], value)


def test_a_new_head_for_other_classes(state_dict):
  model, key = CASE.network().clone(num_classes=3), jax.random.key(4)
  with pytest.raises(WeightsError):
    fr.from_torch(state_dict, model)
  params = fr.from_torch(state_dict, model, head_key=key)["params"]
  assert params["head"]["kernel"].shape == (64, 3)
  assert 0.005 < params["head"]["kernel"].std() < 0.02
  np.testing.assert_array_equal(
    params["stem"]["conv"]["kernel"],
    state_dict["conv1.weight"].transpose(2, 3, 1, 0),
  )


@pytest.mark.deep
def test_tensors_of_pytorch_are_taken(state_dict):
  torch = pytest.importorskip("torch")
  model = CASE.network()
  variables = fr.from_torch(state_dict, model)
  tensors = {
    key: torch.nn.Parameter(torch.tensor(value), requires_grad=False)
    for key, value in state_dict.items()
    if "tracked" not in key
  }
  assert_same(fr.from_torch(tensors, model), variables)
  half = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2),
    fr.from_torch(half, model),
    variables,
  )
