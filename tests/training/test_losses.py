"""The binary cross-entropy of timm, in NumPy and in PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training.losses import make_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(6, 5)).astype(np.float32)
LABELS = np.arange(6) % 5
# Each image is of two classes, in these shares.
MIXED = np.eye(5)[LABELS] * 0.85 + np.eye(5)[(LABELS + 2) % 5] * 0.15
EVEN = np.eye(5)[LABELS] * 0.6 + np.eye(5)[(LABELS + 2) % 5] * 0.4


def by_hand(targets):
  p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
  return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(-1)


def ours(targets, smoothing=0.0, threshold=None):
  loss = make_loss(
    name="binary_cross_entropy",
    label_smoothing=smoothing,
    target_threshold=threshold,
  )
  dtype = None if targets.ndim == 1 else jnp.float32
  return loss(jnp.asarray(LOGITS), jnp.asarray(targets, dtype))


@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_the_mean_over_classes(targets, smoothing):
  soft = np.eye(5)[targets] if targets.ndim == 1 else targets
  wanted = by_hand(soft * (1 - smoothing) + smoothing / 5)
  found = ours(targets, smoothing)
  assert found.shape == (6,)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_threshold_says_which_classes_are_there():
  """0.85 and 0.15 are one class, 0.6 and 0.4 are two."""
  np.testing.assert_allclose(
    ours(MIXED, threshold=0.2), by_hand(np.eye(5)[LABELS]), rtol=1e-5
  )
  np.testing.assert_allclose(
    ours(EVEN, threshold=0.2), by_hand(EVEN > 0), rtol=1e-5
  )
  np.testing.assert_allclose(
    ours(EVEN, threshold=0.5), by_hand(np.eye(5)[LABELS]), rtol=1e-5
  )


def test_binary_cross_entropy_is_that_of_pytorch():
  torch = pytest.importorskip("torch")
  wanted = torch.nn.functional.binary_cross_entropy_with_logits(
    torch.from_numpy(LOGITS), torch.from_numpy(MIXED.astype(np.float32))
  )
  assert float(ours(MIXED).mean()) == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ({"target_threshold": 1.0}, "target_threshold is 1.0"),
    ({"name": "cross_entropy"}, "which cross_entropy has no use for"),
    ({"label_smoothing": 0.1}, "which undoes label_smoothing 0.1"),
  ],
)
def test_what_does_not_fit_is_told(changes, message):
  given = {
    "name": "binary_cross_entropy",
    "label_smoothing": 0.0,
    "target_threshold": 0.2,
  }
  with pytest.raises(ValueError, match=message):
    make_loss(**(given | changes))
