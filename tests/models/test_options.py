"""Options that change how a network is computed, not what it is."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet import sharding
from flax_resnet.models.resnet import plan_stages
from flax_resnet.models.variables import stack
from flax_resnet.models.variables import unstack
from flax_resnet.models.variables import initial_variables
from tests.drawing import normal, variables_of

IMAGES = normal(9, (2, 17, 20, 3))
SMALL = {"stage_sizes": (3, 1), "stage_features": (8, 16)}


@functools.partial(jax.jit, static_argnums=0)
def outputs(apply, variables, images):
  """Logits, new statistics and the gradient of a loss, in training."""

  def loss(params):
    logits, updates = apply(
      variables | {"params": params},
      images,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(5)},
    )
    return jnp.square(logits).mean(), (logits, updates["batch_stats"])

  grads, aux = jax.grad(loss, has_aux=True)(variables["params"])
  return grads, *aux


def assert_close(a, b, atol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-3, atol=atol * max(1, float(jnp.abs(x).max()))
    ),
    a,
    b,
  )


@pytest.mark.parametrize("size", [(32, 32), (31, 34)])
def test_space_to_depth_is_the_7x7_stem(size):
  images = normal(2, (2, *size, 3))
  make = functools.partial(
    fr.create_model, "resnet18", stage_sizes=(1,), stage_features=(16,)
  )
  plain, blocked = make(), make(space_to_depth=True)
  variables = variables_of(plain, images.shape)
  assert_close(
    outputs(plain.apply, variables, images),
    outputs(blocked.apply, variables, images),
  )


@pytest.mark.parametrize(
  "name",
  [
    pytest.param("cifar_preact_resnet164", marks=pytest.mark.slow),
    "seresnet18",
  ],
)
def test_scanned_and_recomputed_blocks_are_the_same_network(name):
  make = functools.partial(fr.create_model, name, **SMALL)
  plain, scanned, remat = make(), make(scan=True), make(remat=True)
  variables = variables_of(plain, IMAGES.shape)
  grads, logits, stats = outputs(plain.apply, variables, IMAGES)
  assert_close((grads, logits, stats), outputs(remat.apply, variables, IMAGES))

  stacked = stack(variables)
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  abstract = jax.eval_shape(
    functools.partial(scanned.init, train=False), jax.random.key(0), IMAGES
  )
  assert shapes(stacked) == shapes(abstract)
  jax.tree.map(np.testing.assert_array_equal, unstack(stacked), variables)
  theirs = outputs(scanned.apply, stacked, IMAGES)
  assert_close(
    (grads, logits, stats),
    (
      unstack({"params": theirs[0]})["params"],
      theirs[1],
      unstack({"batch_stats": theirs[2]})["batch_stats"],
    ),
  )


def test_the_blocks_of_a_loop_start_differently():
  model = fr.create_model("cifar_resnet20", scan=True)
  variables = initial_variables(model, jax.random.key(0), (8, 8, 3))
  first, second = variables["params"]["stage1_blocks"]["conv1"]["kernel"]
  assert np.abs(first - second).max() > 0.1


def test_the_rate_of_stochastic_depth_rises_evenly():
  model = fr.create_model("resnet50", stochastic_depth=0.3)
  rates = [b.drop_rate for stage in plan_stages(model) for b in stage]
  np.testing.assert_allclose(rates, np.linspace(0, 0.3, 16))


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_drops_blocks_of_some_images(scan):
  model = fr.create_model(
    "cifar_resnet20",
    stage_sizes=(3,),
    stage_features=(8,),
    num_classes=0,
    stochastic_depth=0.99,
    scan=scan,
  )
  images = jnp.ones((64, 4, 4, 3))
  variables = variables_of(model, images.shape)
  pooled = outputs(model.apply, variables, images)[1]
  # All images are alike: what differs is what was dropped of them.
  kinds = np.unique(np.asarray(pooled).round(3), axis=0)
  assert 2 <= len(kinds) <= 4
  again = model.apply(variables, images, train=False)
  np.testing.assert_allclose(again, again[:1].repeat(64, 0), rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "resnetv2_50"])
def test_a_smaller_output_stride_keeps_the_parameters(name):
  images = jnp.ones((1, 64, 64, 3))
  make = functools.partial(
    fr.create_model, name, stage_sizes=(1, 1, 2, 1), num_classes=0
  )
  wanted = None
  for stride in (32, 16, 8, 4):
    model = make(output_stride=stride)
    variables, maps = jax.eval_shape(
      lambda key, x, model=model: (
        variables := model.init(key, x, train=False),
        model.apply(variables, x, train=False, method="features"),
      ),
      jax.random.key(0),
      images,
    )
    shapes = jax.tree.map(lambda x: x.shape, variables)
    wanted = wanted or shapes
    assert shapes == wanted
    assert maps["stage4"].shape[1:3] == (64 // stride, 64 // stride)


def test_dropout_of_wide_resnets():
  model = fr.create_model(
    "wrn_28_10", stage_sizes=(1,), stage_features=(8,), dropout=0.5
  )
  variables = variables_of(model, IMAGES.shape)

  @jax.jit
  def apply(seed):
    rngs = {"dropout": jax.random.key(seed)}
    mutable = ["batch_stats"]
    return model.apply(
      variables, IMAGES, train=True, mutable=mutable, rngs=rngs
    )[0]

  assert np.abs(apply(0) - apply(1)).max() > 1e-3
  np.testing.assert_array_equal(apply(0), apply(0))


def test_head_dropout_drops_pooled_features_in_training():
  """Of an identity as head, logits are 0 or the features over what is kept."""
  make = functools.partial(fr.create_model, "resnet18", **SMALL)
  model = make(num_classes=16, head_dropout=0.75)
  variables = variables_of(model, IMAGES.shape)
  head = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
  variables["params"] |= {"head": head}
  features, _ = make(num_classes=0).apply(
    variables, IMAGES, train=True, mutable=["batch_stats"]
  )

  @jax.jit
  def train(key):
    rngs = {"dropout": key}
    mutable = ["batch_stats"]
    return model.apply(
      variables, IMAGES, train=True, mutable=mutable, rngs=rngs
    )[0]

  kept = []
  for seed in range(20):
    logits = train(jax.random.key(seed))
    assert_close(logits, jnp.where(logits == 0, 0, 4 * features))
    kept.append((logits != 0)[features != 0])
  assert 0.2 < np.concatenate(kept).mean() < 0.3
  np.testing.assert_array_equal(
    model.apply(variables, IMAGES, train=False),
    make(num_classes=16).apply(variables, IMAGES, train=False),
  )


@pytest.mark.parametrize("devices", [2, 8])
def test_groups_are_per_device_batch_norm(devices):
  """Against each device's own BatchNorm, as pmap had it, by `shard_map`."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  make = functools.partial(
    fr.create_model,
    "cifar_resnet8",
    stage_features=(4, 8, 8),
    dtype="float64",
    param_dtype="float64",
  )
  with jax.enable_x64(True):
    images = normal(3, (16, 9, 9, 3), "float64")
    labels = jnp.asarray(np.random.default_rng(4).integers(10, size=16))
    variables = variables_of(make(), images.shape, "float64")

    def step(model, images, labels):
      def loss(params):
        logits, new = model.apply(
          variables | {"params": params},
          images,
          train=True,
          mutable=["batch_stats"],
        )
        log_p = jax.nn.log_softmax(logits)
        each = jnp.take_along_axis(log_p, labels[:, None], axis=1)
        return -each.mean(), new["batch_stats"]

      return jax.grad(loss, has_aux=True)(variables["params"])

    @jax.jit
    @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=PartitionSpec("batch"),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
    def per_device(images, labels):
      return jax.lax.pmean(step(make(), images, labels), "batch")

    in_groups = make(norm_group_size=16 // devices)
    split = jax.device_put((images, labels), sharding.split_by_batch(mesh))
    ours = jax.jit(functools.partial(step, in_groups))(*split)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
      ours,
      per_device(images, labels),
    )
