"""The same training in PyTorch and here ends at the same parameters."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from tests.weights import cases

torch = pytest.importorskip("torch")

# Side of the images and batch size.
CASES = {"cifar_resnet18": (16, 8), "resnet50": (64, 8)}
STEPS = 10
# At 1e-3 float32 differs by more than 1e-4 after a few steps: rounding moves
# units across ReLU's kink, and the random net amplifies it. float64 does not.
RATE = 3e-4


def batches(side, size):
  rng = np.random.default_rng(7)
  for _ in range(STEPS):
    yield (
      rng.normal(size=(size, side, side, 3)),
      rng.integers(0, 10, size),
    )


def ours(case, state_dict, side, size, dtype):
  model = case.network().clone(dtype=dtype, param_dtype=dtype)
  variables = fr.from_torch(state_dict, model)
  optimizer = optax.chain(
    optax.add_decayed_weights(1e-3), optax.sgd(RATE, momentum=0.9)
  )

  @jax.jit
  def step(variables, opt_state, x, y):
    def loss_fn(params):
      logits, updates = model.apply(
        {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
      )
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      return loss.mean(), updates

    (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      variables["params"]
    )
    changes, opt_state = optimizer.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], changes)
    return {"params": params, **updates}, opt_state, loss

  opt_state, losses = optimizer.init(variables["params"]), []
  for x, y in batches(side, size):
    variables, opt_state, loss = step(
      variables, opt_state, jnp.asarray(x, dtype), y
    )
    losses.append(float(loss))
  return fr.to_torch(variables, model, names=case.names), losses


def theirs(case, state_dict, side, size, dtype):
  from tests.weights import torch_side

  net = torch_side.build(case)
  net.load_state_dict({k: torch.tensor(v) for k, v in state_dict.items()})
  net.to(getattr(torch, dtype)).train()
  optimizer = torch.optim.SGD(
    net.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-3
  )
  losses = []
  for x, y in batches(side, size):
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(
      getattr(torch, dtype)
    )
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(y))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
  return state, losses


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
  ("dtype", "limit", "of_loss"),
  [("float32", 1e-3, 1e-4), ("float64", 1e-8, 1e-8)],
)
def test_ten_steps_of_sgd(name, dtype, limit, of_loss):
  case = cases.CASES[name]
  if case.theirs[0] == "torchvision" and not find_spec("torchvision"):
    pytest.skip("torchvision is not installed")
  state_dict = cases.filled(cases.our_shapes(case))
  with jax.enable_x64(dtype == "float64"):
    our_state, our_losses = ours(case, state_dict, *CASES[name], dtype)
  their_state, their_losses = theirs(case, state_dict, *CASES[name], dtype)
  np.testing.assert_allclose(our_losses, their_losses, rtol=of_loss)
  vectors = [
    np.concatenate(
      [
        np.ravel(state[key]).astype(np.float64)
        for key in their_state
        if "tracked" not in key
      ]
    )
    for state in (our_state, their_state)
  ]
  apart = np.linalg.norm(vectors[0] - vectors[1])
  start = np.concatenate(
    [np.ravel(v) for k, v in state_dict.items() if "tracked" not in k]
  )
  assert np.linalg.norm(vectors[1] - start) > 1e-3 * np.linalg.norm(start)
  assert apart <= limit * np.linalg.norm(vectors[1])
