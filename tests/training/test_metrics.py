import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training import metrics


def test_sums_are_those_of_numpy_over_the_marked_examples():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(50, 9)).astype(np.float32)
  labels = rng.integers(0, 9, 50).astype(np.int32)
  each = rng.uniform(0, 3, 50).astype(np.float32)
  mask = rng.random(50) < 0.7
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
  total = metrics.zeros() | {"top1": jnp.float32(2), "count": jnp.int32(4)}
  total = metrics.add(total, total | {"loss": jnp.float32(3)})
  assert metrics.means(total) == {
    "loss": 0.375,
    "top1": 0.5,
    "top5": 0.0,
    "count": 8,
  }


def test_over_no_example_there_is_no_mean():
  means = metrics.means(metrics.zeros())
  assert means.pop("count") == 0
  assert all(map(np.isnan, means.values()))
