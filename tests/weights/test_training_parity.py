"""The same training in PyTorch and here ends at the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flax_resnet as fr
from tests.weights import cases


def our_training(name, dtype):
  """Returns what `torch_side.their_training` does, and the state before."""
  case, _ = cases.TRAINED[name]
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
  for x, y in cases.batches(case.sides[0]):
    variables, opt_state, loss = step(
      variables, opt_state, jnp.asarray(x, dtype), y
    )
    losses.append(float(loss))
  state = cases.as_vector(fr.to_torch(variables, model, names=case.names))
  before = cases.as_vector(state_dict)
  return {"losses": np.array(losses), "state": state}, before


def assert_same_training(theirs, name, dtype):
  limit, of_loss = {"float32": (1e-3, 1e-4), "float64": (1e-8, 1e-8)}[dtype]
  with jax.enable_x64(dtype == "float64"):
    ours, before = our_training(name, dtype)
  np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=of_loss)
  after, expected = ours["state"], theirs["state"]
  if len(expected) < len(after):
    before, after = (cases.thinned(v, 1000) for v in (before, after))
  norm = np.linalg.norm
  assert norm(expected - before) > 1e-3 * norm(before)
  assert norm(after - expected) <= limit * norm(expected)


def test_ten_steps_of_sgd_are_the_references_of_pytorch():
  name, (_, dtypes) = next(iter(cases.TRAINED.items()))
  with np.load(cases.REFERENCES) as references:
    theirs = {key: references[f"{name}:{key}"] for key in ("losses", "state")}
  assert_same_training(theirs, name, *dtypes)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    pytest.param(
      name,
      dtype,
      # Of networks at full length, which take a minute and more.
      marks=pytest.mark.deep if case.fields else pytest.mark.slow,
    )
    for name, (case, dtypes) in cases.TRAINED.items()
    for dtype in dtypes
  ],
)
def test_ten_steps_of_sgd_are_those_of_pytorch(name, dtype):
  cases.TRAINED[name][0].skip_without_packages()
  from tests.weights import torch_side

  assert_same_training(torch_side.their_training(name, dtype), name, dtype)
