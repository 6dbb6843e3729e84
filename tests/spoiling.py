"""Steps that are not finite, for tests of what a run does about them."""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from flax_resnet.training import setup


def spoil(
  monkeypatch: pytest.MonkeyPatch,
  config: ConfigDict,
  *steps: int,
  pixel: float = np.nan,
) -> None:
  """Spoils the images of some steps, in runs that are set up from here on.

  Args:
    monkeypatch: ends it.
    config: config of the runs.
    *steps: the steps, from 1.
    pixel: value of all pixels of their images; default NaN. ReLU on CPU makes
      0 of it, so that only the gradient of what comes before is NaN.
  """
  seed = jax.random.key(config.seed)
  keys = [jax.random.fold_in(seed, step - 1) for step in steps]
  bad = np.stack([jax.random.key_data(key) for key in keys])
  make = setup.make_augment

  @functools.wraps(make)
  def make_augment(*args, **kwargs):
    augment, normalize = make(*args, **kwargs)

    def spoiled(key, images, labels, step):
      now = (jax.random.key_data(key)[None] == bad).all(-1).any()
      images, targets = augment(key, images, labels, step)
      return jnp.where(now, pixel, images), targets

    return spoiled, normalize

  monkeypatch.setattr(setup, "make_augment", make_augment)
