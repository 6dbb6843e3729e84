import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_resnet.training.optim import make_optimizer

PAPER = {
  "name": "sgd",
  "learning_rate": 0.1,
  "schedule": "step",
  "warmup": 0.0,
  "boundaries": (0.5, 0.75),
  "decay_rate": 0.1,
  "momentum": 0.9,
  "nesterov": False,
  "weight_decay": 1e-4,
}


def make(num_steps, batch_size=256, **changes):
  return make_optimizer(num_steps, batch_size, **(PAPER | changes))


def test_the_schedule_of_the_paper():
  _, rate = make(64_000)
  for step, wanted in (
    (0, 0.1),
    (31_999, 0.1),
    (32_000, 0.01),
    (47_999, 0.01),
    (48_000, 0.001),
    (63_999, 0.001),
  ):
    assert float(rate(step)) == pytest.approx(wanted), step


def test_the_schedule_of_goyal_et_al():
  # 1,251 steps an epoch: 5 epochs of warm-up, then steps at 30, 60 and 80.
  _, rate = make(
    90 * 1251,
    learning_rate=0.4,
    warmup=5 / 90,
    boundaries=(30 / 90, 60 / 90, 80 / 90),
  )
  for epoch, wanted in (
    (0, 0),
    (2.5, 0.2),
    (5, 0.4),
    (29.9, 0.4),
    (30, 0.04),
    (59.9, 0.04),
    (60, 0.004),
    (80, 0.0004),
  ):
    assert float(rate(round(epoch * 1251))) == pytest.approx(wanted, abs=2e-4)


def test_the_rate_is_scaled_with_the_batch():
  """Goyal et al., section 2.1: kn examples, k times the rate; the start not."""
  _, rate = make(
    100, 8192, reference_batch_size=256, warmup=0.1, warmup_start=0.1
  )
  assert float(rate(0)) == pytest.approx(0.1, rel=1e-5)
  assert float(rate(10)) == pytest.approx(3.2)
  _, rate = make(100, 8192)
  assert float(rate(0)) == pytest.approx(0.1)


def test_cosine_falls_to_zero():
  _, rate = make(100, schedule="cosine", warmup=0.2, boundaries=())
  assert float(rate(0)) == 0
  assert float(rate(10)) == pytest.approx(0.05)
  assert float(rate(20)) == pytest.approx(0.1)
  assert float(rate(60)) == pytest.approx(0.05)
  assert float(rate(100)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(nesterov, decay_all):
  """torch.optim.SGD's documented update, in NumPy."""
  optimizer, rate = make(
    4, nesterov=nesterov, weight_decay=0.05, decay_all=decay_all
  )
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=3)}
  theirs = {key: value.copy() for key, value in params.items()}
  velocity = {key: 0.0 for key in params}
  ours = {key: jnp.asarray(value, jnp.float32) for key, value in params.items()}
  state = optimizer.init(ours)
  for step in range(4):
    grads = {key: rng.normal(size=value.shape) for key, value in params.items()}
    updates, state = optimizer.update(
      {key: jnp.asarray(g, jnp.float32) for key, g in grads.items()},
      state,
      ours,
    )
    ours = optax.apply_updates(ours, updates)
    for key, grad in grads.items():
      if key == "kernel" or decay_all:
        grad = grad + 0.05 * theirs[key]
      velocity[key] = 0.9 * velocity[key] + grad
      change = grad + 0.9 * velocity[key] if nesterov else velocity[key]
      theirs[key] = theirs[key] - float(rate(step)) * change
  for key in params:
    np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-6)


def test_muon_is_that_of_its_author():
  """Kernels by singular values, scales by plain SGD, both decayed apart."""
  optimizer, rate = make(
    2, name="muon", nesterov=True, momentum=0.9, weight_decay=0.05
  )
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
  scale = rng.normal(size=3).astype(np.float32)
  params = {"kernel": jnp.asarray(kernel), "scale": jnp.asarray(scale)}
  grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(
    updates["scale"], -float(rate(0)) * 1.9 * grads["scale"], rtol=1e-5
  )
  undecayed = -updates["kernel"] / float(rate(0)) - 0.05 * kernel
  matrix = np.asarray(undecayed).reshape(18, 4)
  u, _, v = np.linalg.svd(
    np.asarray(grads["kernel"]).reshape(18, 4), full_matrices=False
  )
  # Five steps of Newton-Schulz leave singular values near 1, not at 1.
  aligned = u.T @ matrix @ v.T
  assert np.all(np.abs(np.diag(aligned) - 1) < 0.35)
  np.testing.assert_allclose(aligned - np.diag(np.diag(aligned)), 0, atol=1e-4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ({"warmup": 1.0}, "warmup is 1.0"),
    ({"boundaries": (0.5, 30)}, "boundaries is 30"),
    ({"decay_rate": 0.0}, "decay_rate is 0.0"),
    ({"momentum": 1.0}, "momentum is 1.0"),
    ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
    ({"betas": (0.9,)}, "betas has 1 numbers"),
    ({"betas": (0.9, 1.0)}, "betas is 1.0"),
    ({"eps": -1e-8}, "eps is -1e-08"),
    ({"trust_coefficient": 0.0}, "trust_coefficient is 0.0"),
    ({"clip_norm": -1.0}, "clip_norm is -1.0"),
    ({"reference_batch_size": 0}, "reference_batch_size is 0"),
    ({"name": "lars", "decay_all": True}, "decay_all is an option of sgd"),
  ],
)
def test_numbers_out_of_range_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    make(100, **changes)


def test_a_long_gradient_is_shortened():
  """Over all parameters together; a short one stays as it is."""
  optimizer, _ = make(4, clip_norm=2.0, weight_decay=0.0, momentum=0.0)
  params = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(1)}
  for length, left in ((4.5, 2.0), (1.5, 1.5)):
    grads = {
      "kernel": jnp.array([[2.0, 2.0]]) * length / 3,
      "bias": jnp.array([1.0]) * length / 3,
    }
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    wanted = -0.1 * left / 3 * np.array([2, 2, 1])
    found = np.r_[updates["kernel"].ravel(), updates["bias"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_keys_that_are_off_leave_the_state_as_it_was():
  """So that old checkpoints fit."""
  params = {"kernel": jnp.zeros((1, 2))}
  old = optax.chain(
    optax.add_decayed_weights(1e-4), optax.sgd(lambda step: 0.1, 0.9)
  )
  optimizer, _ = make(4)
  paths = lambda tree: [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]
  assert paths(optimizer.init(params)) == paths(old.init(params))
