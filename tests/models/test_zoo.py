import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models.cost import cost
from flax_resnet.models.variables import initial_variables
from tests.drawing import normal, variables_of

# Parameters, and multiply-adds (10^9) at 224 pixels, or at 32 for CIFAR.
PUBLISHED = {
  # torchvision, "num_params" and "_ops" of the weights' metadata.
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


def abstract(model, size=32):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = lambda key, x: model.init(key, x, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
  model = fr.create_model(name, scan=True)
  parameters, multiply_adds = PUBLISHED[name]
  counted = cost(model, 32 if model.stem == "cifar" else 224)
  assert counted.parameters == parameters
  if multiply_adds:
    # timm counts norms, pools and activations too.
    assert counted.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.02)


@pytest.mark.parametrize(
  ("name", "millions"),
  [("resnet50", 11.1), ("resnet101", 16.2), ("resnext50_32x4d", 14.4)],
)
def test_activations_are_the_published_ones(name, millions):
  """Radosavovic et al. 2020, Table 4."""
  counted = cost(fr.create_model(name, scan=True), 224)
  assert counted.activations / 1e6 == pytest.approx(millions, abs=0.05)


def test_multiply_adds_are_those_of_torchvision_to_its_last_digit():
  for name in ("resnet18", "resnext50_32x4d"):
    counted = cost(fr.create_model(name), 224).multiply_adds
    assert round(counted / 1e9, 3) == PUBLISHED[name][1]


def test_every_name_makes_a_network():
  assert len(fr.list_models()) == 50
  for name in fr.list_models():
    assert isinstance(fr.create_model(name), fr.ResNet)


def test_parameters_are_named_as_in_the_paper():
  params = abstract(fr.create_model("resnet50"))["params"]
  assert params["stem"]["conv"]["kernel"].shape == (7, 7, 3, 64)
  block = params["stage2_block1"]
  assert set(block) == {
    *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    "shortcut",
  }
  assert block["shortcut"]["conv"]["kernel"].shape == (1, 1, 256, 512)
  assert "shortcut" not in params["stage2_block2"]
  assert params["head"]["kernel"].shape == (2048, 1000)


@pytest.mark.parametrize(
  ("name", "sides", "channels"),
  [
    ("resnet18", (32, 16, 8, 4, 2), (64, 64, 128, 256, 512)),
    ("resnet50", (32, 16, 8, 4, 2), (64, 256, 512, 1024, 2048)),
    ("cifar_resnet20", (64, 64, 32, 16), (16, 16, 32, 64)),
  ],
)
def test_feature_maps(name, sides, channels):
  model = fr.create_model(name)
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, train=False, method="features"),
    abstract(model),
    images,
  )
  names = ["stem", *(f"stage{i}" for i in range(1, len(sides)))]
  assert maps.keys() == set(names)
  for name, side, width in zip(names, sides, channels, strict=True):
    assert maps[name].shape == (2, side, side, width)


def test_no_classes_means_pooled_features():
  model = fr.create_model(
    "cifar_resnet20", num_classes=0, stage_sizes=(1, 1, 1)
  )
  x = normal(0, (2, 8, 8, 3))
  variables = variables_of(model, x.shape)
  assert "head" not in variables["params"]
  apply = jax.jit(
    functools.partial(model.apply, train=False), static_argnames="method"
  )
  pooled = apply(variables, x)
  maps = apply(variables, x, method="features")
  np.testing.assert_allclose(pooled, maps["stage3"].mean((1, 2)), rtol=1e-6)


def test_bfloat16_computes_with_float32_state_and_logits():
  model = fr.create_model("cifar_resnet20", dtype="bfloat16")
  variables = abstract(model)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  both = jax.eval_shape(
    lambda v, x: (
      model.apply(v, x, train=False),
      model.apply(v, x, train=False, method="features"),
    ),
    variables,
    images,
  )
  assert both[0].dtype == jnp.float32
  assert both[1]["stage3"].dtype == jnp.bfloat16


def test_the_start_is_that_of_init():
  model = fr.create_model(
    "cifar_resnet20",
    zero_init_residual=True,
    stage_sizes=(1, 1),
    stage_features=(4, 8),
  )
  key = jax.random.key(3)
  jax.tree.map(
    np.testing.assert_array_equal,
    initial_variables(model, key, (8, 8, 3)),
    model.init(key, jnp.zeros((1, 8, 8, 3)), train=False),
  )


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (("resnet51",), ValueError, "unknown model 'resnet51': did you mean 'resn"),
    (("zebra",), ValueError, "unknown model 'zebra': use one of resnet18, "),
  ],
)
def test_unknown_names_are_told(call, error, message):
  with pytest.raises(error, match=message):
    fr.create_model(*call)


@pytest.mark.parametrize(
  ("fields", "error", "message"),
  [
    ({"num_clases": 3}, TypeError, "did you mean 'num_classes'?"),
    ({"shortcut": "skip"}, ValueError, "unknown shortcut 'skip'"),
    ({"stem": "patch"}, ValueError, "unknown stem 'patch'"),
    ({"stage_sizes": (1, 1)}, ValueError, "stage_sizes has 2 entries"),
    ({"num_classes": -1}, ValueError, "num_classes is -1"),
    ({"norm_group_size": 0}, ValueError, "norm_group_size is 0"),
    ({"stochastic_depth": 1.0}, ValueError, "stochastic_depth is 1.0"),
    ({"dropout": 0.1}, ValueError, "dropout is an option of Wide ResNets"),
    ({"output_stride": 12}, ValueError, "use one of 4, 8, 16, 32"),
    ({"space_to_depth": True, "stem": "cifar"}, ValueError, "7x7 stem"),
  ],
)
def test_wrong_fields_are_told(fields, error, message):
  with pytest.raises(error, match=message):
    fr.create_model("resnet18", **fields)
