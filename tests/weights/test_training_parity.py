"""The same training in PyTorch and here ends at the same parameters."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from tests.weights import cases


def our_training(name, dtype):
  """Returns what `torch_side.their_training` does, and the vector before."""
  case, side, _ = cases.TRAINED[name]
  model = case.network().clone(dtype=dtype, param_dtype=dtype)
  state_dict = cases.filled(cases.our_shapes(case))
  variables = fr.from_torch(state_dict, model)
  optimizer = optax.chain(
    optax.add_decayed_weights(cases.DECAY), optax.sgd(cases.RATE, momentum=0.9)
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
  for x, y in cases.batches(side):
    variables, opt_state, loss = step(
      variables, opt_state, jnp.asarray(x, dtype), y
    )
    losses.append(float(loss))
  state = cases.as_vector(fr.to_torch(variables, model, names=case.names))
  return {"losses": np.array(losses), "state": state}, state_dict


def their_training(name, dtype):
  """Live where PyTorch is there, else as it was on the authors' machine."""
  if find_spec("torch") and find_spec("torchvision"):
    from tests.weights import torch_side

    return torch_side.their_training(name, dtype)
  with np.load(cases.REFERENCES) as stored:
    return {k: stored[f"{name}/{dtype}:{k}"] for k in ("losses", "state")}


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    pytest.param(
      name,
      dtype,
      marks=[pytest.mark.slow] if name == "resnet50" else [],
    )
    for name, (_, _, dtypes) in cases.TRAINED.items()
    for dtype in dtypes
  ],
)
def test_ten_steps_of_sgd(name, dtype):
  limit, of_loss = {"float32": (1e-3, 1e-4), "float64": (1e-8, 1e-8)}[dtype]
  with jax.enable_x64(dtype == "float64"):
    ours, state_dict = our_training(name, dtype)
  theirs = their_training(name, dtype)
  np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=of_loss)
  start = cases.as_vector(state_dict)
  if len(theirs["state"]) < len(start):
    start, ours["state"] = (
      cases.thinned(v, 1000) for v in (start, ours["state"])
    )
  norm = np.linalg.norm
  assert norm(theirs["state"] - start) > 1e-3 * norm(start)
  assert norm(ours["state"] - theirs["state"]) <= limit * norm(theirs["state"])
