"""The network as a whole, and the options that change how it is computed."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet import sharding
from flax_resnet.models.cost import cost
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.variables import stack
from tests.drawing import normal, variable_shapes, variables_of

IMAGES = normal(9, (2, 6, 5, 3))
# A net of one block behind a 3x3 stem.
ONE_BLOCK = {"stage_sizes": (1,), "stage_features": (8,), "stem": "cifar"}


def evaluate(model, variables, images, **keywords):
  """Returns the outputs of a network in evaluation."""
  return model.apply(variables, images, train=False, **keywords)


def train(model, variables, images, seed=0):
  """Returns the outputs of a network in training, and its new statistics."""
  return model.apply(
    variables,
    images,
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(seed)},
  )


def train_step(model, variables, images):
  """Returns gradients of a loss, outputs and new statistics."""

  def loss(params):
    logits, new = train(model, variables | {"params": params}, images)
    return jnp.square(logits - 1).mean(), (logits, new["batch_stats"])

  return jax.grad(loss, has_aux=True)(variables["params"])


def assert_close(a, b, **tolerances):
  compare = functools.partial(np.testing.assert_allclose, **tolerances)
  jax.tree.map(compare, a, b)


def test_parameters_are_named_as_in_the_paper():
  model = fr.create_model("resnet50", stage_sizes=(1, 2, 1, 1))
  params = variable_shapes(model, (1, 32, 32, 3))["params"]
  assert params["stem"]["conv"]["kernel"].shape == (7, 7, 3, 64)
  block = params["stage2_block1"]
  convolutions = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
  assert block.keys() == convolutions | {"shortcut"}
  assert block["shortcut"]["conv"]["kernel"].shape == (1, 1, 256, 512)
  assert params["stage2_block2"].keys() == convolutions
  assert params["head"]["kernel"].shape == (2048, 1000)
  names = [f"stage{i}_block1" for i in (1, 2, 3, 4)]
  assert model.block_names == sorted([*names, "stage2_block2"])
  assert params.keys() == {"stem", "head", *model.block_names}


@pytest.mark.parametrize(
  ("name", "sides", "channels"),
  [
    ("resnet18", (32, 16, 8, 4, 2), (64, 64, 128, 256, 512)),
    ("resnet50", (32, 16, 8, 4, 2), (64, 256, 512, 1024, 2048)),
    ("cifar_resnet20", (64, 64, 32, 16), (16, 16, 32, 64)),
  ],
)
def test_feature_maps(name, sides, channels):
  model = fr.create_model(name, stage_sizes=(1,) * (len(sides) - 1))
  maps = jax.eval_shape(
    functools.partial(model.apply, train=False, method="features"),
    variable_shapes(model, (2, 64, 64, 3)),
    jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
  )
  names = ["stem", *(f"stage{i}" for i in range(1, len(sides)))]
  shapes = [(2, side, side, c) for side, c in zip(sides, channels, strict=True)]
  wanted = dict(zip(names, shapes, strict=True))
  assert {name: y.shape for name, y in maps.items()} == wanted


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50"])
def test_the_head_takes_the_last_map_to_the_logits(name):
  model = fr.create_model(name, **ONE_BLOCK | {"num_classes": 3})
  variables = variables_of(model, IMAGES.shape)

  @jax.jit
  def run(variables):
    maps = evaluate(model, variables, IMAGES, method="features")
    logits = evaluate(model, variables, maps["stage1"], method="head")
    return logits, evaluate(model, variables, IMAGES)

  np.testing.assert_array_equal(*run(variables))


def test_bfloat16_computes_with_float32_state_and_logits():
  model = fr.create_model("resnet18", dtype="bfloat16", **ONE_BLOCK)
  variables = variable_shapes(model, IMAGES.shape)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  for net in (model, model.clone(num_classes=0)):
    outputs = jax.eval_shape(
      functools.partial(evaluate, net), variables, IMAGES
    )
    assert outputs.dtype == jnp.float32
  run = functools.partial(evaluate, model, method="features")
  maps = jax.eval_shape(run, variables, IMAGES)
  assert maps["stage1"].dtype == jnp.bfloat16


def test_bfloat16_obeys_no_promotion():
  model = fr.create_model("cifar_resnet8", num_classes=3, dtype="bfloat16")
  images = normal(0, (2, 8, 8, 3)).astype(jnp.bfloat16)
  variables = variables_of(model, images.shape)
  with jax.numpy_dtype_promotion("strict"):
    jax.eval_shape(functools.partial(train_step, model), variables, images)


def test_an_image_size_may_be_open_in_a_program():
  model = fr.create_model("cifar_resnet8", num_classes=3)
  variables = variables_of(model, (1, 8, 8, 3))
  shape = jax.export.symbolic_shape("b, h, w, 3")
  exported = jax.export.export(
    jax.jit(lambda images: model.apply(variables, images, train=False))
  )(jax.ShapeDtypeStruct(shape, jnp.float32))
  for size in ((2, 8, 8, 3), (3, 11, 6, 3)):
    images = normal(0, size)
    np.testing.assert_allclose(
      exported.call(images),
      model.apply(variables, images, train=False),
      atol=1e-5,
    )


def test_space_to_depth_is_the_7x7_stem():
  """At an odd height and an even width."""
  images = normal(2, (2, 9, 14, 3))
  fields = ONE_BLOCK | {"stem": "imagenet"}
  plain = fr.create_model("resnet18", **fields)
  blocked = plain.clone(space_to_depth=True)
  variables = variables_of(plain, images.shape)

  @jax.jit
  def run(variables):
    return [evaluate(net, variables, images) for net in (plain, blocked)]

  assert_close(*run(variables), rtol=1e-3, atol=1e-4)
  # 4x4 taps of 12 channels instead of 7x7 of 3.
  assert cost(blocked, 32).multiply_adds > cost(plain, 32).multiply_adds


def test_scanned_and_recomputed_blocks_are_the_same_network():
  plain = fr.create_model(
    "cifar_preact_resnet110", stage_sizes=(3,), stage_features=(4,)
  )
  scanned = plain.clone(scan=True, remat=True)
  variables = variables_of(plain, IMAGES.shape)
  stacked = stack(variables)
  step = jax.jit(train_step, static_argnums=0)

  gradients, (logits, stats) = step(plain, variables, IMAGES)
  wanted = stack({"params": gradients, "batch_stats": stats})
  gradients, (theirs, stats) = step(scanned, stacked, IMAGES)
  found = {"params": gradients, "batch_stats": stats}
  assert_close((found, theirs), (wanted, logits), rtol=1e-3, atol=1e-5)

  program = jax.make_jaxpr(functools.partial(train, scanned))(stacked, IMAGES)
  assert "remat" in str(program)
  assert "scan" in str(program)
  # Where nothing is dropped, no key is needed.
  scanned.apply(stacked, IMAGES, train=True, mutable=["batch_stats"])


def drop_rates(model):
  """Returns the rates that the blocks of a network are dropped at."""
  rates = []

  def record(apply, arguments, keywords, context):
    if isinstance(context.module, StochasticDepth):
      rates.append(arguments[1])
    return apply(*arguments, **keywords)

  with nn.intercept_methods(record):
    variable_shapes(model, IMAGES.shape)
  return rates


def test_the_rate_of_stochastic_depth_rises_evenly():
  model = fr.create_model("resnet50", stochastic_depth=0.3)
  np.testing.assert_allclose(drop_rates(model), np.linspace(0, 0.3, 16))


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_drops_blocks_of_some_images(scan):
  model = fr.create_model(
    "resnet18",
    **ONE_BLOCK | {"stage_sizes": (3,)},
    num_classes=0,
    stochastic_depth=0.99,
    scan=scan,
  )
  images = jnp.ones((64, 3, 3, 3))
  variables = variables_of(model, images.shape)

  @jax.jit
  def run(variables):
    pooled, _ = train(model, variables, images)
    return pooled, evaluate(model, variables, images)

  pooled, evaluated = run(variables)
  # All images are alike: what differs is what was dropped of them.
  kinds = np.unique(np.asarray(pooled).round(3), axis=0)
  assert 2 <= len(kinds) <= 4
  assert_close(evaluated, evaluated[:1].repeat(64, 0), rtol=1e-4)


def test_dropout_of_wide_resnets():
  model = fr.create_model("wrn_28_10", dropout=0.5, **ONE_BLOCK)
  variables = variables_of(model, IMAGES.shape)
  run = jax.jit(functools.partial(train, model))
  dropped, _ = run(variables, IMAGES, 0)
  np.testing.assert_array_equal(dropped, run(variables, IMAGES, 0)[0])
  assert np.abs(dropped - run(variables, IMAGES, 1)[0]).max() > 1e-3
  # It would ask for a key if it dropped anything in evaluation.
  jax.eval_shape(functools.partial(evaluate, model), variables, IMAGES)


def test_head_dropout_drops_pooled_features_in_training():
  """Behind an identity for a head, where logits are the features."""
  model = fr.create_model(
    "resnet18", num_classes=8, head_dropout=0.75, **ONE_BLOCK
  )
  images = normal(3, (100, 3, 3, 3))
  variables = variables_of(model, images.shape)
  variables["params"]["head"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}

  @jax.jit
  def run(variables):
    pooled = model.clone(num_classes=0)
    return (
      train(model, variables, images)[0],
      train(pooled, variables, images)[0],
      evaluate(model, variables, images),
      evaluate(pooled, variables, images),
    )

  logits, features, evaluated, wanted = run(variables)
  dropped = logits == 0
  assert_close(logits, np.where(dropped, 0, 4 * features), rtol=1e-3, atol=1e-4)
  assert 0.7 < dropped[features != 0].mean() < 0.8
  assert_close(evaluated, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "num_classes"), [("cifar_resnet8", 1), ("seresnet18", 3)]
)
def test_a_step_in_float32_is_that_in_float64(name, num_classes):
  """With the norms that a run logs, sums of squares of small products.

  JAX 0.10.2 is said to miscompute such (https://github.com/jax-ml/jax, issue
  39103). Softplus in place of ReLU, which has a kink.
  """
  sizes = {"stage_sizes": (1, 1), "stage_features": (4, 8), "stem": "cifar"}

  def norms(dtype):
    images = normal(5, (3, 6, 5, 3), np.float64)
    model = fr.create_model(
      name, num_classes=num_classes, dtype=dtype, param_dtype=dtype, **sizes
    )
    variables = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, dtype),
      variables_of(model, images.shape, np.float64),
    )

    @jax.jit
    def step(variables):
      gradients, (logits, _) = train_step(
        model, variables, images.astype(dtype)
      )
      squares = jax.tree.map(lambda leaf: jnp.square(leaf).sum(), gradients)
      head = jnp.square(gradients["head"]["kernel"]).sum(0)
      return squares, head, jnp.square(logits).sum(0)

    return step(variables)

  with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
    patch.setattr(nn, "relu", nn.softplus)
    wanted, found = norms("float64"), norms("float32")
  assert_close(found, wanted, rtol=1e-3, atol=1e-5)


VARIANTS = {
  **{name: {} for name in ("resnetv2_50d_evos", "resnetv2_50d_frn")},
  **{name: {} for name in ("resnetv2_50x1_bit", "ecaresnet50t", "senet154")},
  **{name: {} for name in ("resnetblur50d", "resnetaa50", "resnest50d")},
  "resnet50": {"norm": "group", "weight_standardization": True},
}


def step_with_all_options(name):
  """Returns a step of training as a function without arguments."""
  model = fr.create_model(
    name,
    **VARIANTS[name],
    stage_sizes=(1, 3),
    stage_features=(64, 128),
    num_classes=3,
    stochastic_depth=0.5,
    output_stride=4,
    scan=True,
    remat=True,
    dtype="bfloat16",
  )
  images = normal(0, (4, 12, 13, 3))
  variables = {"batch_stats": {}} | variables_of(model, images.shape)
  return functools.partial(train_step, model, variables, images)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_the_options_of_the_others(name):
  gradients, (logits, _) = jax.eval_shape(step_with_all_options(name))
  assert logits.dtype == jnp.float32
  assert "stage2_blocks" in gradients


def test_gradients_keep_their_shards_on_the_mesh_of_jax():
  """`jax.make_mesh` has explicit axes, which are part of the types."""
  mesh = jax.make_mesh((8,), ("data",))
  model = fr.create_model("cifar_resnet8", num_classes=3)
  images = normal(0, (16, 8, 8, 3))
  variables = variables_of(model, images.shape)
  one = jax.jit(functools.partial(train_step, model))
  expected, _ = one(variables, images)
  sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
  everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  gradients, _ = one(everywhere, sharded)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    gradients,
    expected,
  )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_gradients_on_the_mesh_of_jax(name):
  mesh = jax.make_mesh((4,), ("data",))
  model, _, images = step_with_all_options(name).args
  model = model.clone(scan=False)
  variables = {"batch_stats": {}} | variables_of(model, images.shape)

  def typed(leaf, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  gradients, _ = jax.eval_shape(
    functools.partial(train_step, model),
    jax.tree.map(typed, variables),
    typed(images, "data"),
  )
  assert "stage2_block1" in gradients


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(VARIANTS)[-5:])
def test_every_parameter_of_every_variant_has_a_gradient(name):
  gradients, _ = jax.jit(step_with_all_options(name))()
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 0


def test_groups_are_per_device_batch_norm():
  """Against each device's own BatchNorm, as pmap had it, by `shard_map`."""
  mesh = sharding.make_mesh(jax.devices()[:4])
  with jax.enable_x64(True):
    model = fr.create_model(
      "resnet18",
      **ONE_BLOCK,
      num_classes=3,
      dtype="float64",
      param_dtype="float64",
    )
    images = normal(3, (8, 3, 4, 3), np.float64)
    variables = variables_of(model, images.shape, np.float64)

    @jax.jit
    @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec("batch")),
      out_specs=(PartitionSpec(), (PartitionSpec("batch"), PartitionSpec())),
      check_vma=False,
    )
    def per_device(variables, images):
      gradients, (logits, stats) = train_step(model, variables, images)
      gradients, stats = jax.lax.pmean((gradients, stats), "batch")
      return gradients, (logits, stats)

    split = jax.device_put(images, sharding.split_by_batch(mesh))
    in_groups = model.clone(norm_group_size=2)
    step = jax.jit(functools.partial(train_step, in_groups))
    ours = step(variables, split)
    assert_close(ours, per_device(variables, images), rtol=1e-9, atol=1e-12)
