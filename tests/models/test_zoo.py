import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr

# torchvision's documentation; for CIFAR, He et al. 2015 (0.27M ... 19.4M) and
# the PyTorch models of akamaster.
PARAMETERS = {
  "resnet18": 11_689_512,
  "resnet34": 21_797_672,
  "resnet50": 25_557_032,
  "resnet101": 44_549_160,
  "resnet152": 60_192_808,
  "cifar_resnet20": 269_722,
  "cifar_resnet32": 464_154,
  "cifar_resnet44": 658_586,
  "cifar_resnet56": 853_018,
  "cifar_resnet110": 1_727_962,
  "cifar_resnet1202": 19_421_274,
  # A skip without parameters: as many as the residual nets.
  "cifar_plain20": 269_722,
  "cifar_plain56": 853_018,
}


def abstract(model, size=32):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = lambda key, x: model.init(key, x, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
  params = abstract(fr.create_model(name))["params"]
  total = sum(np.prod(p.shape) for p in jax.tree.leaves(params))
  assert total == PARAMETERS[name]


def test_every_name_makes_a_network():
  assert len(fr.list_models()) == 17
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
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  variables = model.init(jax.random.key(0), x, train=False)
  assert "head" not in variables["params"]
  pooled = model.apply(variables, x, train=False)
  maps = model.apply(variables, x, train=False, method="features")
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


def test_a_deep_net_initialises_without_being_compiled():
  model = fr.create_model("cifar_resnet20", zero_init_residual=True)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = model.lazy_init(jax.random.key(0), images, train=False)
  block = variables["params"]["stage3_block3"]
  np.testing.assert_array_equal(block["bn2"]["scale"], 0)
  np.testing.assert_array_equal(block["bn1"]["scale"], 1)


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
  ],
)
def test_wrong_fields_are_told(fields, error, message):
  with pytest.raises(error, match=message):
    fr.create_model("resnet18", **fields)
