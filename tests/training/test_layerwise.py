"""AdamW, LAMB and LARS against the formulas of their papers, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_resnet.models import stacking
from flax_resnet.training.optim import make_optimizer

RATES = (0.0, 0.05, 0.1, 0.05, 0.0)  # One cycle over four steps.
DECAY = 0.3
SHAPES = {
  "conv": {"kernel": (3, 3, 2, 4)},
  "bn": {"scale": (4,), "bias": (4,)},
  "head": {"kernel": (4, 3), "bias": (3,)},
}


def make(name, **changes):
  given = {
    "learning_rate": 0.1,
    "schedule": "one_cycle",
    "warmup": 0.5,
    "boundaries": (),
    "decay_rate": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": DECAY,
  }
  optimizer, _ = make_optimizer(4, 64, name=name, **(given | changes))
  return optimizer


def draw(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.normal(size=shape),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def ours(optimizer, params, gradients):
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for grads in gradients:
      grads = jax.tree.map(jnp.asarray, grads)
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
  return params


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


CASES = {
  "adamw": ("adamw", {}, adamw()),
  "adamw, other numbers": (
    "adamw",
    {"betas": (0.7, 0.8), "eps": 0.1},
    adamw((0.7, 0.8), 0.1),
  ),
  "lamb": ("lamb", {}, lamb()),
  "lamb, other numbers": (
    "lamb",
    {"betas": (0.7, 0.8), "eps": 0.1},
    lamb((0.7, 0.8), 0.1),
  ),
  "lars": ("lars", {}, lars()),
  "lars, other numbers": (
    "lars",
    {"nesterov": True, "trust_coefficient": 0.02, "eps": 0.5},
    lars(True, 0.02, 0.5),
  ),
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
  params, gradients = draw(0), [draw(seed) for seed in range(1, 5)]
  assert_close(
    ours(make(name, **changes), params, gradients),
    theirs(rule, params, gradients),
  )


def test_adamw_is_that_of_pytorch():
  torch = pytest.importorskip("torch")
  params, gradients = draw(0), [draw(seed) for seed in range(1, 5)]
  tensors = [
    torch.nn.Parameter(torch.from_numpy(p.copy()))
    for p in jax.tree.leaves(params)
  ]
  groups = [
    {"params": [t for t in tensors if t.ndim > 1], "weight_decay": DECAY},
    {"params": [t for t in tensors if t.ndim == 1], "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups)
  for rate, grads in zip(RATES, gradients, strict=False):
    for group in optimizer.param_groups:
      group["lr"] = rate
    for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
      tensor.grad = torch.from_numpy(grad)
    optimizer.step()
  found = jax.tree.leaves(ours(make("adamw"), params, gradients))
  assert_close(found, [tensor.detach().numpy() for tensor in tensors])


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw", "lamb", "lars"])
def test_blocks_in_a_loop_are_layers_of_their_own(name):
  """The kernels of `scan=True` lie in one array, and so do the scales."""
  shapes = {f"stage1_block{n}": SHAPES for n in (1, 2, 3)}
  params = draw(0, shapes)
  gradients = [draw(seed, shapes) for seed in range(1, 5)]
  single = ours(make(name), params, gradients)
  with jax.enable_x64(True):
    stack = lambda tree: stacking.stack({"params": tree})["params"]
    stacked = ours(make(name), stack(params), list(map(stack, gradients)))
    assert "stage1_blocks" in stacked
    assert_close(stacked, stack(single), rtol=1e-12)


def test_a_kernel_of_zeros_is_still_trained():
  """Its norm would keep it at 0 for ever."""
  params = {"kernel": np.zeros((2, 3))}
  grads = {"kernel": np.ones((2, 3))}
  for name in ("lamb", "lars"):
    moved = ours(make(name), params, [grads, grads])
    assert np.all(np.asarray(moved["kernel"]) < -1e-3)
