"""Scores are those of scikit-learn, and of Guo et al. as they are written."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import calibration, metrics

from flax_resnet.training import scores as room
from flax_resnet.training.scores import Calibration, make_score_step, score
from tests import recipes, runs


def logits_of(data_dir, variables):
  """Returns the logits of all test images, and of their mirror images."""
  config = recipes.one_block(data_dir)
  run = runs.make_run(config)
  images = np.stack([record["image"] for record in run.dataset.eval.source])
  scaled = (images / 255 - config.augment.mean[0]) / config.augment.std[0]
  scaled = jnp.asarray(scaled, jnp.float32)
  return [
    np.asarray(run.model.apply(variables, x, train=False), np.float64)
    for x in (scaled, scaled[:, :, ::-1])
  ]


@pytest.fixture(scope="module")
def variables(data_dir):
  """Variables of a net that is more or less sure of what it says."""
  run = runs.make_run(recipes.one_block(data_dir))
  variables = run.drawn_state().variables
  drawn, _ = logits_of(data_dir, variables)
  scale = 1.5 / drawn.std(0).mean()
  head = {
    "kernel": scale * variables["params"]["head"]["kernel"],
    "bias": jnp.asarray(-scale * drawn.mean(0), jnp.float32),
  }
  return {**variables, "params": {**variables["params"], "head": head}}


@pytest.fixture(scope="module")
def logits(data_dir, variables):
  """Logits of all test images, and of their mirror images; and the labels."""
  source = runs.make_run(recipes.one_block(data_dir)).dataset.eval.source
  labels = np.stack([record["label"] for record in source])
  return (*logits_of(data_dir, variables), labels)


def found(data_dir, variables, devices, batch_size, **options):
  config = recipes.one_block(data_dir)
  run = runs.make_run(config, {"eval_batch_size": batch_size}, devices)
  step = make_score_step(run.model, run.normalize, mesh=run.mesh, **options)
  on_mesh = room.sharding.replicate(variables, run.mesh)
  return score(step, on_mesh, run.eval_batches(), run.mesh, 10)


def softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def error_of_guo(confidences, right, bins=15):
  """Returns equation 3, bin by bin, each (a, b]."""
  total, edges = 0.0, np.linspace(0, 1, bins + 1)
  for low, high in itertools.pairwise(edges):
    inside = (confidences > low) & (confidences <= high)
    if inside.any():
      gap = abs(right[inside].mean() - confidences[inside].mean())
      total += inside.mean() * gap
  return total


@pytest.mark.parametrize(
  ("devices", "batch_size", "flip"), [(1, 7, True), (8, 64, False)]
)
def test_scores_are_those_of_sklearn(
  data_dir, variables, logits, devices, batch_size, flip
):
  result = found(data_dir, variables, devices, batch_size, flip=flip)
  ours, mirrored, labels = logits
  ours = (ours + mirrored) / 2 if flip else ours
  probabilities, classes = softmax(ours), np.arange(10)
  predicted = ours.argmax(-1)
  expected = metrics.confusion_matrix(labels, predicted, labels=classes)
  np.testing.assert_array_equal(result.confusion, expected)
  np.testing.assert_array_equal(result.class_counts, expected.sum(1))
  np.testing.assert_array_equal(result.class_right, np.diag(expected))
  np.testing.assert_allclose(
    result.accuracy_by_class,
    metrics.recall_score(labels, predicted, average=None),
  )
  for k in (1, 2, 3, 5):
    share = metrics.top_k_accuracy_score(labels, ours, k=k, labels=classes)
    assert result.top(k) == pytest.approx(share)
  assert result.top(99) == 1
  assert result.means["top1"] == pytest.approx((predicted == labels).mean())
  assert result.means["loss"] == pytest.approx(
    metrics.log_loss(labels, probabilities, labels=classes), rel=1e-4
  )
  confidences, right = probabilities.max(-1), predicted == labels
  accuracy, mean = calibration.calibration_curve(right, confidences, n_bins=15)
  filled = result.calibration.counts > 0
  assert filled.sum() > 5
  np.testing.assert_allclose(result.calibration.accuracy[filled], accuracy)
  np.testing.assert_allclose(
    result.calibration.confidence[filled], mean, rtol=1e-4
  )
  assert result.calibration.error == pytest.approx(
    error_of_guo(confidences, right), rel=1e-4
  )
  assert result.calibration.overconfidence == pytest.approx(
    confidences.mean() - right.mean(), rel=1e-4
  )
  assert result.images_per_second > 0


def zeros(num_classes):
  return jax.tree.map(jnp.asarray, room._zeros(num_classes))


def test_bins_are_closed_above():
  logits = jnp.log(jnp.array([[0.6, 0.4], [0.4, 0.6], [1.0, 1e-30]]))
  total = room._add_details(
    zeros(2), logits, jnp.array([0, 0, 0]), jnp.array([True, True, True])
  )
  assert np.flatnonzero(total["bin_counts"]).tolist() == [8, 14]
  assert total["bin_counts"].tolist()[8] == 2  # (0.533, 0.6]
  assert total["bin_right"].tolist()[8] == 1


def test_a_net_that_diverged_has_no_calibration():
  logits = jnp.full((2, 3), jnp.nan)
  total = room._add_details(
    zeros(3), logits, jnp.array([1, 2]), jnp.array([True, True])
  )
  bins = (np.asarray(total[key]) for key in room._BY_BIN)
  assert np.isnan(Calibration(*bins).error)
  assert total["confusion"].sum() == total["class_counts"].sum() == 2


def test_very_many_classes_have_no_matrix():
  many = room.MAX_CONFUSION + 1
  total = zeros(many)
  assert "confusion" not in total
  total = room._add_details(
    total, jnp.zeros((1, many)), jnp.array([0]), jnp.array([True])
  )
  assert total["class_right"][0] == total["rank_counts"][0] == 1
