import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.weights import names
from flax_resnet.weights import WeightsError
from tests.weights import cases

CASE = cases.CASES["cifar_resnet20"]


@pytest.fixture(scope="module")
def state_dict():
  return cases.filled(cases.our_shapes(CASE))


@pytest.mark.parametrize(
  "name",
  ["resnetrs50", "resnetv2_50", "transformers18", "cifar_resnet18", "wrn_40_4"],
)
def test_a_round_trip_is_the_same_bits(name):
  case = cases.CASES[name]
  state_dict = cases.filled(cases.our_shapes(case))
  model = case.network()
  back = fr.to_torch(fr.from_torch(state_dict, model), model, names=case.names)
  assert back.keys() == state_dict.keys()
  for key, value in state_dict.items():
    assert back[key].dtype == value.dtype, key
    np.testing.assert_array_equal(back[key], value)


def test_a_prefix_is_left_out(state_dict):
  model = CASE.network()
  plain = fr.from_torch(state_dict, model)
  prefixed = {f"module.{key}": value for key, value in state_dict.items()}
  jax.tree.map(
    np.testing.assert_array_equal, plain, fr.from_torch(prefixed, model)
  )


def test_scanned_networks_take_the_same_weights(state_dict):
  model, scanned = CASE.network(), CASE.network().clone(scan=True)
  x = jnp.asarray(cases.images(16))
  ours = model.apply(fr.from_torch(state_dict, model), x, train=False)
  variables = fr.from_torch(state_dict, scanned)
  assert "stage2_blocks" in variables["params"]
  theirs = scanned.apply(variables, x, train=False)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  back = fr.to_torch(variables, scanned, names="cifar")
  for key, value in state_dict.items():
    np.testing.assert_array_equal(back[key], value)


def test_what_does_not_fit_is_named(state_dict):
  wrong = dict(state_dict)
  del wrong["layer1.0.bn2.running_var"]
  wrong["layer9.0.conv1.weight"] = np.zeros((1, 1, 3, 3), np.float32)
  wrong["linear.weight"] = np.zeros((7, 64), np.float32)
  with pytest.raises(WeightsError) as caught:
    fr.from_torch(wrong, CASE.network())
  message = str(caught.value)
  assert "missing: layer1.0.bn2.running_var;" in message
  assert "unexpected: layer9.0.conv1.weight;" in message
  assert "linear.weight [7, 64] for head/kernel [64, 10]" in message
  assert "akamaster" in message


def test_a_tensor_of_another_rank_is_named(state_dict):
  wrong = state_dict | {"conv1.weight": np.zeros(3, np.float32)}
  with pytest.raises(WeightsError, match=r"of another shape: conv1.weight \[3"):
    fr.from_torch(wrong, CASE.network())


def test_a_model_without_a_head_leaves_the_file_s_out(state_dict):
  model = CASE.network().clone(num_classes=0)
  assert "head" not in fr.from_torch(state_dict, model)["params"]


def test_a_fresh_head_for_other_classes(state_dict):
  model = CASE.network().clone(num_classes=3)
  with pytest.raises(WeightsError, match="another shape"):
    fr.from_torch(state_dict, model)
  variables = fr.from_torch(state_dict, model, head_key=jax.random.key(4))
  kernel = variables["params"]["head"]["kernel"]
  assert kernel.shape == (64, 3)
  assert 0.005 < kernel.std() < 0.02
  np.testing.assert_array_equal(
    variables["params"]["stem"]["conv"]["kernel"],
    state_dict["conv1.weight"].transpose(2, 3, 1, 0),
  )


def test_conventions_are_recognised():
  for name, case in cases.CASES.items():
    # What has neither "linear" nor "shortcut" is torchvision's.
    found = names.recognise(cases.our_shapes(case))
    assert found is names.CONVENTIONS[case.names], name


@pytest.mark.parametrize(
  "name",
  ["resnet18", "resnext50_32x4d", "resnet50d", "resnetrs50", "resnetv2_50"],
)
def test_what_is_written_loads_strictly(name):
  torch = pytest.importorskip("torch")
  # Not importorskip: torchvision must not be imported without its stand-ins.
  if not all(map(importlib.util.find_spec, ("torchvision", "timm"))):
    pytest.skip("torchvision or timm is not installed")
  from tests.weights import torch_side

  case = cases.CASES[name]
  model = case.network()
  variables = model.lazy_init(
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    train=False,
  )
  written = fr.to_torch(variables, model)
  torch_side.build(case).load_state_dict(
    {key: torch.tensor(value) for key, value in written.items()},
    strict=True,
  )


def test_pytorch_s_own_tensors_are_taken(state_dict):
  torch = pytest.importorskip("torch")
  tensors = {
    key: torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
    for key, value in state_dict.items()
    if "tracked" not in key
  }
  half = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
  model = CASE.network()
  jax.tree.map(
    np.testing.assert_array_equal,
    fr.from_torch(tensors, model),
    fr.from_torch(state_dict, model),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2),
    fr.from_torch(half, model),
    fr.from_torch(state_dict, model),
  )
