"""Optimizers against the formulas of their papers, in NumPy."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from flax_resnet.models import variables
from flax_resnet.training.freezing import Freezing
from flax_resnet.training.optimizers import layer_scales, make_optimizer

RATES = (0.02, 0.05, 0.1, 0.04)  # By step.
DECAY = 0.3
SHAPES = {
  "conv": {"kernel": (3, 3, 2, 4)},
  "bn": {"scale": (4,), "bias": (4,)},
  "head": {"kernel": (4, 3), "bias": (3,)},
}


def make(name, **changes):
  rate = lambda step: jnp.asarray(RATES)[step]
  return make_optimizer(rate, name=name, **({"weight_decay": DECAY} | changes))


def draw(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.normal(size=shape),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def gradients(shapes=SHAPES):
  return [draw(seed, shapes) for seed in range(1, 5)]


def ours(optimizer, params, gradients):
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for grads in gradients:
      grads = jax.tree.map(jnp.asarray, grads)
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def theirs(rule, params, gradients):
  """Applies `rule(p, g, memory, step, is_kernel) -> p` leaf by leaf."""
  leaves, treedef = jax.tree.flatten(params)
  memories = [{} for _ in leaves]
  for step, grads in enumerate(gradients):
    leaves = [
      rule(p, g, memory, step, p.ndim > 1)
      for p, g, memory in zip(
        leaves, jax.tree.leaves(grads), memories, strict=True
      )
    ]
  return jax.tree.unflatten(treedef, leaves)


def sgd(momentum=0.9, nesterov=False, decay_all=False):
  """As torch.optim.SGD documents it."""

  def rule(p, g, memory, step, is_kernel):
    g = g + DECAY * p * (is_kernel or decay_all)
    v = memory["v"] = momentum * memory.get("v", 0) + g
    return p - RATES[step] * (g + momentum * v if nesterov else v)

  return rule


def adam(g, memory, step, betas, eps):
  b1, b2 = betas
  memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
  memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
  m = memory["m"] / (1 - b1 ** (step + 1))
  v = memory["v"] / (1 - b2 ** (step + 1))
  return m / (np.sqrt(v) + eps)


def adamw(betas=(0.9, 0.999), eps=1e-8):
  def rule(p, g, memory, step, is_kernel):
    direction = adam(g, memory, step, betas, eps)
    return p - RATES[step] * (direction + DECAY * p * is_kernel)

  return rule


def lamb(betas=(0.9, 0.999), eps=1e-6):
  def rule(p, g, memory, step, is_kernel):
    direction = adam(g, memory, step, betas, eps) + DECAY * p * is_kernel
    if is_kernel:
      direction *= np.linalg.norm(p) / np.linalg.norm(direction)
    return p - RATES[step] * direction

  return rule


def lars(nesterov=False, coefficient=0.001, eps=0.0):
  def rule(p, g, memory, step, is_kernel):
    if is_kernel:
      g = g + DECAY * p
      g = g * coefficient * np.linalg.norm(p) / (np.linalg.norm(g) + eps)
    v = memory["v"] = 0.9 * memory.get("v", 0) + RATES[step] * g
    return p - (0.9 * v + RATES[step] * g if nesterov else v)

  return rule


ADAM = {"betas": (0.7, 0.8), "eps": 0.1}
LARS = {"nesterov": True, "trust_coefficient": 0.02, "eps": 0.5}
CASES = {
  "sgd": ("sgd", {}, sgd()),
  "sgd, Nesterov's": ("sgd", {"nesterov": True}, sgd(nesterov=True)),
  "sgd, without momentum": ("sgd", {"momentum": 0.0}, sgd(0.0)),
  "sgd, all decayed": ("sgd", {"decay_all": True}, sgd(decay_all=True)),
  "adamw": ("adamw", {}, adamw()),
  "adamw, other numbers": ("adamw", ADAM, adamw(**ADAM)),
  "lamb": ("lamb", {}, lamb()),
  "lamb, other numbers": ("lamb", ADAM, lamb(**ADAM)),
  "lars": ("lars", {}, lars()),
  "lars, other numbers": ("lars", LARS, lars(True, 0.02, 0.5)),
}


def assert_close(found, wanted, rtol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol, atol=1e-8),
    found,
    wanted,
  )


@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_is_that_of_its_paper(case):
  name, changes, rule = CASES[case]
  assert_close(
    ours(make(name, **changes), draw(0), gradients()),
    theirs(rule, draw(0), gradients()),
  )


def test_muon_is_that_of_its_author():
  """Convolutions by singular values, all else by SGD, kernels decayed apart."""
  params, grads = draw(0), draw(1)
  moved = ours(make("muon", nesterov=True), params, [grads])
  change = jax.tree.map(lambda a, b: (a - b) / RATES[0], params, moved)
  np.testing.assert_allclose(
    change["bn"]["scale"], 1.9 * grads["bn"]["scale"], rtol=1e-5
  )
  np.testing.assert_allclose(
    change["head"]["kernel"],
    1.9 * grads["head"]["kernel"] + DECAY * params["head"]["kernel"],
    rtol=1e-5,
  )
  kernel, grads = params["conv"]["kernel"], grads["conv"]["kernel"]
  step = np.reshape(change["conv"]["kernel"] - DECAY * kernel, (18, 4))
  u, _, v = np.linalg.svd(grads.reshape(18, 4), full_matrices=False)
  aligned = u.T @ step @ v.T
  # Five steps of Newton-Schulz leave singular values near 1, not at 1.
  assert np.all(np.abs(np.diag(aligned) - 1) < 0.35)
  np.testing.assert_allclose(aligned - np.diag(np.diag(aligned)), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw", "lamb", "lars"])
def test_blocks_in_a_loop_are_layers_of_their_own(name):
  """The kernels of `scan=True` lie in one array, and so do the scales."""
  shapes = {f"stage1_block{n}": SHAPES for n in (1, 2, 3)}
  grads = gradients(shapes)[:2]
  single = ours(make(name), draw(0, shapes), grads)
  with jax.enable_x64(True):
    stack = lambda tree: variables.stack({"params": tree})["params"]
    stacked = ours(make(name), stack(draw(0, shapes)), list(map(stack, grads)))
    single = stack(single)
  assert "stage1_blocks" in stacked
  assert_close(stacked, single, rtol=1e-12)


def test_a_kernel_of_zeros_is_still_trained():
  """Its norm would keep it at 0 for ever."""
  params = {"kernel": np.zeros((2, 3))}
  grads = {"kernel": np.ones((2, 3))}
  for name in ("lamb", "lars"):
    moved = ours(make(name), params, [grads, grads])
    assert np.all(moved["kernel"] < -1e-3)


def test_a_long_gradient_is_shortened():
  """Over all parameters together; a short one stays as it is."""
  optimizer = make("sgd", clip_norm=2.0, weight_decay=0.0, momentum=0.0)
  params = {"kernel": np.zeros((1, 2)), "bias": np.zeros(1)}
  for length, left in ((4.5, 2.0), (1.5, 1.5)):
    grads = {"kernel": np.array([[2.0, 2.0]]), "bias": np.array([1.0])}
    grads = jax.tree.map(lambda g, length=length: g * length / 3, grads)
    moved = ours(optimizer, params, [grads])
    found = np.r_[moved["kernel"].ravel(), moved["bias"]]
    wanted = -RATES[0] * left / 3 * np.array([2, 2, 1])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_options_that_are_off_are_not_in_the_state():
  """A checkpoint holds what the optimizer needs and no more."""
  params = {"kernel": np.zeros((1, 2))}
  plain = optax.chain(
    optax.add_decayed_weights(1e-4), optax.sgd(lambda step: 0.1, 0.9)
  )
  found, wanted = (
    list(variables.named_leaves(optimizer.init(params)))
    for optimizer in (make("sgd"), plain)
  )
  assert found == wanted


NET = {"stem": SHAPES, "stage1_block1": SHAPES, "head": SHAPES["head"]}


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw", "lamb", "lars"])
def test_rates_are_scaled_by_layer(name):
  """A step moves each module by the share of what it would without."""
  net = {"stage1_block2": SHAPES, "bn": SHAPES["bn"], **NET}
  blocks = ("stage1_block1", "stage1_block2")
  rate = lambda step: 0.1
  options = {"name": name, "weight_decay": DECAY}
  scaled = make_optimizer(
    rate, blocks, layer_decay=0.5, head_rate_factor=10.0, **options
  )
  scales = {
    **{"stem": 0.125, "stage1_block1": 0.25, "stage1_block2": 0.5},
    **{"bn": 0.5, "head": 10.0},
  }
  params, grads = draw(0, net), [draw(1, net)]
  plain = ours(make_optimizer(rate, **options), params, grads)
  found = ours(scaled, params, grads)
  for module, scale in scales.items():
    assert_close(
      jax.tree.map(np.subtract, found[module], params[module]),
      jax.tree.map(
        lambda a, b, scale=scale: scale * (a - b), plain[module], params[module]
      ),
    )


@pytest.mark.deep
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnetv2_50d_gn"])
def test_layers_are_grouped_as_timm_does(name):
  """Of every parameter; that of a head learns 3 times as fast besides."""
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  timm = pytest.importorskip("timm")
  optim = pytest.importorskip("timm.optim")
  theirs = timm.create_model(name, num_classes=7)
  groups = optim.param_groups_layer_decay(theirs, layer_decay=0.6)
  scales = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
  wanted = {n: scales[id(p)] for n, p in theirs.named_parameters()}
  model = fr.create_model(name, num_classes=7)
  scales = layer_scales(model.block_names, 0.6, 3.0)
  shapes = variables.variable_shapes(model)
  filled = {
    "params": {
      module: jax.tree.map(
        lambda x, m=module: np.full(x.shape, scales[m]), tree
      )
      for module, tree in shapes["params"].items()
    },
    **{
      key: jax.tree.map(lambda x: np.ones(x.shape), tree)
      for key, tree in shapes.items()
      if key != "params"
    },
  }
  found = fr.to_torch(filled, model)
  assert wanted.keys() <= found.keys()
  for key in wanted:
    factor = 3.0 if key.startswith(("fc", "head")) else 1.0
    np.testing.assert_allclose(found[key], factor * wanted[key], rtol=1e-6)


def thawed_at_2(params, grads, **options):
  """Trains the head for two steps, then everything."""
  freezing = Freezing(trunk=True, until=2)
  rate = lambda step: jnp.asarray(RATES)[step]
  optimizer = make_optimizer(rate, (), freezing, weight_decay=DECAY, **options)
  with jax.enable_x64(True):
    params, *grads = jax.tree.map(jnp.asarray, [params, *grads])
    state = optimizer.init(params)
    for step, g in enumerate(grads):
      part = freezing.trained if step < 2 else dict
      trained = part(params)
      updates, state = optimizer.update(part(g), state, trained)
      params = {**params, **optax.apply_updates(trained, updates)}
    return jax.device_get(params)


@pytest.mark.parametrize(
  ("name", "rule"),
  [("sgd", sgd()), ("adamw", adamw()), ("lamb", lamb()), ("lars", lars())],
)
def test_what_thaws_is_new_to_the_optimizer(monkeypatch, name, rule):
  """As in PyTorch, where each parameter has moments and a count of its own."""
  monkeypatch.setattr(sys.modules[__name__], "RATES", (0.05,) * 4)
  params, grads = draw(0, NET), gradients(NET)
  found = thawed_at_2(params, grads, name=name)
  wanted = theirs(rule, params, grads)
  late = theirs(rule, params, grads[2:])
  assert_close(found["head"], wanted["head"])
  for module in ("stem", "stage1_block1"):
    assert_close(found[module], late[module])


def test_what_thaws_learns_at_the_rate_of_the_run():
  params, grads = draw(0, NET), gradients(NET)
  found = thawed_at_2(params, grads, name="sgd", momentum=0.0)
  kernel = params["stem"]["conv"]["kernel"]
  for step in (2, 3):
    gradient = grads[step]["stem"]["conv"]["kernel"] + DECAY * kernel
    kernel = kernel - RATES[step] * gradient
  np.testing.assert_allclose(found["stem"]["conv"]["kernel"], kernel, rtol=1e-6)


def test_one_gradient_is_shortened_over_what_is_trained_and_what_thaws():
  params, grads = draw(0, NET), gradients(NET)
  options = {"name": "sgd", "momentum": 0.0, "clip_norm": 0.5}
  found = thawed_at_2(params, [*grads[:2], grads[2]], **options)
  norm = optax.tree.norm(grads[2])
  bias = params["stem"]["bn"]["bias"]
  wanted = bias - RATES[2] * grads[2]["stem"]["bn"]["bias"] * 0.5 / norm
  np.testing.assert_allclose(found["stem"]["bn"]["bias"], wanted, rtol=1e-6)
