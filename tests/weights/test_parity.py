"""Our networks compute what PyTorch's do, with the same weights."""

import numpy as np
import pytest

from tests.weights import cases, timm_names, timm_parity

# Made of parts that others have as well, or that have tests of their own.
OF_KNOWN_PARTS = {
  *("wide_resnet50_2", "resnet50d_dilated", "seresnet18"),
  *("transformers", "transformers18", "cifar_plain20"),
  *("resnet50s", "seresnext26t_32x4d", "senet154", "senet154_dilated"),
  *("resnetaa34d", "resnetblur50d", "resnet50_gn"),
  *("resnetv2_18d", "resnetv2_50d_gn", "resnetv2_50d_evos"),
  *("resnetv2_50d_frn", "resnetv2_50x1_bit"),
  *("resnest14d", "resnest50d_1s4x24d"),
}


def assert_close(ours, theirs, name):
  assert ours.shape == theirs.shape, name
  std = max(theirs.std(), 1e-6)
  difference = np.abs(ours - theirs).max()
  assert difference <= 1e-4 * std, f"{name}: {difference / std:.1e} std"


@pytest.mark.parametrize("name", sorted(cases.CASES.keys() - OF_KNOWN_PARTS))
def test_logits_are_the_references_of_pytorch(name):
  """At an even and an odd size."""
  case = cases.CASES[name]
  ours = cases.our_logits(case, cases.filled(cases.our_shapes(case)))
  with np.load(cases.REFERENCES) as references:
    for key, value in ours.items():
      assert_close(value, references[f"{name}:{key}"], key)


@pytest.mark.deep
@pytest.mark.parametrize("name", cases.CASES)
def test_outputs_are_those_of_pytorch(name):
  """Logits, feature maps and running statistics, as a user compiles them."""
  case = cases.CASES[name]
  case.skip_without_packages()
  from tests.weights import torch_side

  state_dict = cases.filled(cases.our_shapes(case))
  ours = cases.our_outputs(case, state_dict)
  theirs = torch_side.their_outputs(case, state_dict)
  assert theirs.keys() == ours.keys()
  for key, value in theirs.items():
    assert_close(ours[key], value, key)


@pytest.mark.parametrize(
  "name",
  [
    # A pruned one has no shorter form.
    pytest.param(name, marks=pytest.mark.deep)
    if name == "ecaresnet50d_pruned"
    else pytest.param(name, marks=pytest.mark.slow)
    for name in timm_names.read()
  ],
)
def test_outputs_are_those_of_timm_at_full_length(name):
  timm_parity.case_of(name, "float32").skip_without_packages()
  dtype, *found = timm_parity.compare(name)
  assert max(found) <= timm_parity.LIMITS[dtype]
