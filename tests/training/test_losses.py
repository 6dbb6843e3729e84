"""Losses against their formulas, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training.losses import make_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(6, 5)).astype(np.float32)
LABELS = np.arange(6) % 5
ONE, OTHER = np.eye(5)[LABELS], np.eye(5)[(LABELS + 2) % 5]
# Each image is of two classes, in these shares.
MIXED = 0.85 * ONE + 0.15 * OTHER
EVEN = 0.6 * ONE + 0.4 * OTHER


def cross_entropy(targets):
  logits = LOGITS.astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -(targets * log_p).sum(-1)


def binary_cross_entropy(targets):
  p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
  return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(-1)


FORMULAS = {
  "cross_entropy": cross_entropy,
  "binary_cross_entropy": binary_cross_entropy,
}


def ours(targets, **section):
  dtype = None if targets.ndim == 1 else jnp.float32
  return make_loss(**section)(jnp.asarray(LOGITS), jnp.asarray(targets, dtype))


@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_is_that_of_smooth_targets(name, smoothing, targets):
  """Szegedy et al. 2015, section 7; the binary one is a mean over classes."""
  soft = np.eye(5)[targets] if targets.ndim == 1 else targets
  wanted = FORMULAS[name](soft * (1 - smoothing) + smoothing / 5)
  found = ours(targets, name=name, label_smoothing=smoothing)
  assert found.shape == (6,)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_plain_cross_entropy_is_the_default():
  np.testing.assert_allclose(ours(LABELS), cross_entropy(ONE), rtol=1e-5)


@pytest.mark.parametrize(
  ("targets", "threshold", "wanted"),
  [(MIXED, 0.2, ONE), (EVEN, 0.2, ONE + OTHER), (EVEN, 0.5, ONE)],
)
def test_a_threshold_makes_whole_targets_of_shares(targets, threshold, wanted):
  found = ours(targets, name="binary_cross_entropy", target_threshold=threshold)
  np.testing.assert_allclose(found, binary_cross_entropy(wanted), rtol=1e-5)
