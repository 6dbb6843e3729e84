"""Losses against their formulas, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training.losses import (
  balanced_weights,
  make_loss,
  make_weigh,
)

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


WEIGHTS = (0.5, 2.0, 1.0, 3.0, 0.25)


def of_a_step(targets, **section):
  """Returns the loss of a step: over the mean weight of its targets."""
  weigh = make_weigh(section["class_weights"])
  dtype = None if targets.ndim == 1 else jnp.float32
  mean = weigh(jnp.asarray(targets, dtype)).mean()
  return (ours(targets, **section) / mean).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_is_a_weighted_mean(smoothing):
  weights = np.array(WEIGHTS)
  soft = ONE * (1 - smoothing) + smoothing / 5
  wanted = cross_entropy(weights * soft).sum() / weights[LABELS].sum()
  for targets in (LABELS, ONE):
    found = of_a_step(targets, class_weights=WEIGHTS, label_smoothing=smoothing)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_balanced_weights_are_those_of_scikit_learn():
  sklearn = pytest.importorskip("sklearn.utils.class_weight")
  labels = np.repeat(np.arange(4), (9, 1, 30, 2))
  wanted = sklearn.compute_class_weight(
    "balanced", classes=np.arange(4), y=labels
  )
  found = balanced_weights(np.bincount(labels).tolist(), "abcd")
  np.testing.assert_allclose(found, wanted, rtol=1e-12)
  with pytest.raises(ValueError, match="there is no record of b: use numbers"):
    balanced_weights([1, 0], "ab")


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_focal_loss_is_that_of_its_paper(gamma):
  """Lin et al. 2017, eq. 4; mixed targets share it out."""
  logits = LOGITS.astype(np.float64)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  wanted = -(MIXED * (1 - p) ** gamma * np.log(p)).sum(-1)
  found = ours(MIXED, focal_gamma=gamma)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  p = 1 / (1 + np.exp(-logits))
  near = p * ONE + (1 - p) * (1 - ONE)
  alpha = 0.25 * ONE + 0.75 * (1 - ONE)
  found = ours(
    LABELS, name="binary_cross_entropy", focal_gamma=gamma, focal_alpha=0.25
  )
  wanted = (-alpha * (1 - near) ** gamma * np.log(near)).mean(-1)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_focal_loss_of_a_sure_answer_has_a_slope(name):
  loss = make_loss(name=name, focal_gamma=0.5)
  slope = jax.grad(lambda x: loss(x, jnp.array([0])).sum())
  assert np.isfinite(slope(jnp.array([[200.0, -200.0]]))).all()


@pytest.mark.deep
def test_weighted_and_focal_losses_are_those_of_pytorch():
  torch = pytest.importorskip("torch")
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  focal = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
  logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
  weight = torch.tensor(WEIGHTS)
  soft = torch.tensor(MIXED, dtype=torch.float32)
  nn = torch.nn
  for smoothing in (0.0, 0.1):
    wanted = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    found = of_a_step(LABELS, class_weights=WEIGHTS, label_smoothing=smoothing)
    np.testing.assert_allclose(found, wanted(logits, labels), rtol=1e-6)
  # Of shares PyTorch divides by the number of examples.
  found = ours(MIXED, class_weights=WEIGHTS).mean()
  wanted = nn.CrossEntropyLoss(weight)(logits, soft)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  binary = {"name": "binary_cross_entropy"}
  found = ours(MIXED, class_weights=WEIGHTS, **binary).mean()
  wanted = nn.BCEWithLogitsLoss(weight)(logits, soft)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  for alpha in (0.25, None):
    options = {"focal_gamma": 2.0, "focal_alpha": alpha}
    found = ours(MIXED, **options, **binary).mean()
    wanted = focal(
      logits, soft, -1 if alpha is None else alpha, 2.0, reduction="mean"
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
