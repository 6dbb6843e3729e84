"""Our networks give what PyTorch's give: see `cases` and `torch_side`."""

import importlib.util

import numpy as np
import pytest

from tests.weights import cases

NEEDS = {
  "torchvision": ("torch", "torchvision"),
  "timm": ("torch", "torchvision", "timm"),
  "transformers": ("torch", "torchvision", "transformers"),
  "cifar": ("torch",),
  "preact": ("torch",),
}


@pytest.fixture(scope="module")
def references():
  return np.load(cases.REFERENCES)


def assert_same(ours, theirs, spread, name):
  difference = np.abs(ours - theirs).max()
  assert difference <= 1e-4 * spread, f"{name}: {difference / spread:.1e} std"


@pytest.mark.parametrize("name", cases.CASES)
def test_outputs_are_those_of_pytorch(name, references):
  """Logits, feature maps and running statistics; live if torch is there."""
  case = cases.CASES[name]
  state_dict = cases.filled(cases.our_shapes(case))
  ours = cases.our_outputs(case, state_dict)
  assert all(np.isfinite(value).all() for value in ours.values())
  packages = NEEDS[case.theirs[0]]
  if all(importlib.util.find_spec(package) for package in packages):
    from tests.weights import torch_side

    theirs = torch_side.their_outputs(case, state_dict)
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
      assert ours[key].shape == value.shape, key
      assert_same(ours[key], value, max(value.std(), 1e-6), key)
  compared = 0
  for key in references.files:
    of, _, what = key.partition(":")
    if of == name:
      spread = max(ours[what].std(), 1e-6)
      assert_same(cases.thinned(ours[what]), references[key], spread, key)
      compared += 1
  assert compared >= 2 * len(case.network().stage_sizes) + 5
