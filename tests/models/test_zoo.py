"""The networks by name, against what has been published of them."""

import pytest

import flax_resnet as fr
from flax_resnet.models.cost import cost
from flax_resnet.models.zoo import source_of

# Parameters and multiply-adds (10^9) at 224 pixels: "num_params" and "_ops" of
# the metadata of torchvision's weights.
TORCHVISION = {
  "resnet18": (11_689_512, 1.814),
  "resnet34": (21_797_672, 3.664),
  "resnet50": (25_557_032, 4.089),
  "resnet101": (44_549_160, 7.801),
  "resnet152": (60_192_808, 11.514),
  "wide_resnet50_2": (68_883_240, 11.398),
  "wide_resnet101_2": (126_886_696, 22.753),
  "resnext50_32x4d": (25_028_904, 4.23),
  "resnext101_32x8d": (88_791_336, 16.414),
  "resnext101_64x4d": (83_455_272, 15.46),
}
# And of others; those for CIFAR at 32 pixels.
PUBLISHED = {
  **TORCHVISION,
  # He et al. 2015, Table 1: 3.8, 7.6 and 11.3.
  "resnet50_v1": (25_557_032, 3.8),
  "resnet101_v1": (44_549_160, 7.6),
  "resnet152_v1": (60_192_808, 11.3),
  # timm 1.0: its models' parameters; its table of results, "macs".
  "resnet200": (64_673_832, 15.07),
  "resnetv2_50": (25_549_352, 4.11),
  "resnetv2_101": (44_541_480, 7.83),
  "resnetv2_152": (60_185_128, 11.55),
  "resnet26d": (16_014_408, 2.60),
  "resnet34d": (21_816_904, 3.91),
  "resnet50d": (25_576_264, 4.35),
  "resnet101d": (44_568_392, 8.08),
  "resnet152d": (60_212_040, 11.80),
  "seresnet18": (11_779_624, 1.82),
  "seresnet50": (28_088_024, 4.11),
  "seresnet101": (49_326_872, None),
  "seresnet152": (66_821_848, None),
  "resnetrs50": (35_691_912, 4.48),
  "resnetrs101": (63_618_696, None),
  "resnetrs152": (86_621_576, None),
  "resnetrs200": (93_209_992, None),
  # He et al. 2015, Table 6 (0.27M ... 19.4M); to the digit, akamaster's nets.
  "cifar_resnet20": (269_722, None),
  "cifar_resnet32": (464_154, None),
  "cifar_resnet44": (658_586, None),
  "cifar_resnet56": (853_018, None),
  "cifar_resnet110": (1_727_962, None),
  "cifar_resnet1202": (19_421_274, None),
  # A skip without parameters: as many as the residual nets.
  "cifar_plain20": (269_722, None),
  "cifar_plain32": (464_154, None),
  "cifar_plain44": (658_586, None),
  "cifar_plain56": (853_018, None),
  # kuangliu/pytorch-cifar.
  "cifar_resnet18": (11_173_962, None),
  "cifar_resnet34": (21_282_122, None),
  "cifar_resnet50": (23_520_842, None),
  # Zagoruyko & Komodakis 2016: 36.5M and 8.9M, and 5.2 (Table 3).
  "wrn_28_10": (36_479_194, 5.2),
  "wrn_40_4": (8_949_210, None),
  # He et al. 2016, Table 4: 1.7M, 1.7M and 10.2M.
  "cifar_preact_resnet110": (1_730_522, None),
  "cifar_preact_resnet164": (1_703_258, None),
  "cifar_preact_resnet1001": (10_327_706, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
  model = fr.create_model(name)
  counted = cost(model, 32 if model.stem == "cifar" else 224)
  parameters, multiply_adds = PUBLISHED[name]
  assert counted.parameters == parameters
  if name in TORCHVISION:
    assert round(counted.multiply_adds / 1e9, 3) == multiply_adds
  elif multiply_adds:  # timm counts norms, pools and activations too.
    assert counted.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.02)


def test_every_name_makes_a_network_of_some_paper():
  names = fr.list_models()
  assert PUBLISHED.keys() < set(names)
  for name in names:
    assert isinstance(fr.create_model(name), fr.ResNet)
    assert "arXiv:" in source_of(name)


def test_fields_replace_those_of_the_name():
  model = fr.create_model("resnet50", num_classes=3, shortcut="identity")
  assert (model.num_classes, model.shortcut) == (3, "identity")
  assert model.stage_sizes == fr.create_model("resnet50").stage_sizes
