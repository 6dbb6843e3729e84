import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_resnet.training import losses, metrics

RNG = np.random.default_rng(0)


def test_sums_are_those_of_numpy_over_the_marked_examples():
  logits = RNG.normal(size=(50, 9)).astype(np.float32)
  labels = RNG.integers(0, 9, 50).astype(np.int32)
  each = RNG.uniform(0, 3, 50).astype(np.float32)
  mask = RNG.random(50) < 0.7
  total = metrics.sums(*map(jnp.asarray, (each, logits, labels, mask)))
  order = np.argsort(-logits, -1)[mask]
  marked = labels[mask][:, None]
  assert total["count"] == mask.sum()
  assert total["top1"] == (order[:, :1] == marked).sum()
  assert total["top5"] == (order[:, :5] == marked).sum()
  np.testing.assert_allclose(total["loss"], each[mask].sum(), rtol=1e-5)


@pytest.mark.parametrize(
  ("logits", "label", "right"),
  [
    ([1.0, 1.0, 0.0], 0, True),  # Of equals, argmax takes the first.
    ([1.0, 1.0, 0.0], 1, False),
    ([np.nan, 1.0, 0.0], 1, False),
    ([1.0, np.nan, 0.0], 0, False),
    ([np.nan] * 3, 0, False),
    ([np.nan] * 3, 2, False),
  ],
)
def test_ties_and_nans_are_no_gift(logits, label, right):
  total = metrics.sums(
    jnp.zeros(1), jnp.asarray([logits]), jnp.array([label]), jnp.array([True])
  )
  assert bool(total["top1"]) == right


def test_means_divide_by_the_count():
  total = metrics.add(
    {
      "loss": jnp.float32(3),
      "top1": jnp.float32(2),
      "top5": jnp.float32(4),
      "count": jnp.int32(4),
    },
    metrics.zeros(),
  )
  assert metrics.means(total) == {
    "loss": 0.75,
    "top1": 0.5,
    "top5": 1.0,
    "count": 4,
  }


def test_label_smoothing_is_that_of_szegedy():
  logits = RNG.normal(size=(6, 5)).astype(np.float32)
  labels = np.arange(6) % 5
  loss = losses.make_loss(label_smoothing=0.1)
  targets = np.eye(5)[labels] * 0.9 + 0.1 / 5
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  wanted = -(targets * log_p).sum(-1)
  np.testing.assert_allclose(
    loss(jnp.asarray(logits), jnp.asarray(labels)), wanted, rtol=1e-5
  )
  plain = losses.make_loss(label_smoothing=0.0)(
    jnp.asarray(logits), jnp.asarray(labels)
  )
  np.testing.assert_allclose(
    plain,
    optax.softmax_cross_entropy_with_integer_labels(logits, labels),
    rtol=1e-6,
  )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_soft_targets_mix_the_losses_of_the_labels(label_smoothing):
  logits = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
  one, other = jnp.arange(6) % 5, jnp.arange(6) // 2
  loss = losses.make_loss(label_smoothing=label_smoothing)
  targets = jnp.eye(5)[one] * 0.7 + jnp.eye(5)[other] * 0.3
  np.testing.assert_allclose(
    loss(logits, targets),
    0.7 * loss(logits, one) + 0.3 * loss(logits, other),
    rtol=1e-5,
  )
