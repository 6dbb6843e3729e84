"""Every example counts once, and as much as any other."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.training.evaluation import evaluate
from tests import recipes, runs


@pytest.fixture(scope="module")
def expected(data_dir):
  """The means by the logits of all images in one batch, in NumPy."""
  config = recipes.one_block(data_dir)
  run = runs.make_run(config)
  images, labels = (
    np.stack([record[key] for record in run.dataset.eval.source])
    for key in ("image", "label")
  )
  scaled = (images / 255 - config.augment.mean[0]) / config.augment.std[0]
  logits = run.model.apply(
    run.drawn_state().variables,
    jnp.asarray(scaled, jnp.float32),
    train=False,
  )
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  ranks = (-logits).argsort(-1)
  return {
    "val/loss": -log_p[np.arange(360), labels].mean(),
    "val/top1": (ranks[:, 0] == labels).mean(),
    "val/top5": (ranks[:, :5] == labels[:, None]).any(-1).mean(),
    "val/count": 360,
  }


@pytest.mark.parametrize(
  ("devices", "batch_size"), [(1, 7), (8, 64), (8, 10**6)]
)
def test_evaluation_weighs_every_image_alike(
  data_dir, expected, devices, batch_size
):
  config = recipes.one_block(data_dir)
  run = runs.make_run(config, {"eval_batch_size": batch_size}, devices)
  variables = runs.first_state(run).eval_variables
  means = evaluate(run.eval_step, variables, run.eval_batches(), run.mesh)
  assert means == pytest.approx(expected, rel=1e-5)
