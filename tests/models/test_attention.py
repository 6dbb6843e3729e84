"""Channel attention against NumPy."""

import jax
import numpy as np
import pytest

from flax_resnet.models.attention import (
  EfficientChannelAttention,
  SqueezeExcite,
)
from tests.drawing import normal


def test_squeeze_and_excitation_weighs_channels():
  """With a width that is rounded up to 8."""
  x = normal(7, (4, 3, 3, 8))
  module = SqueezeExcite(8)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: np.asarray(normal(p.size, p.shape)), shapes)
  fc1, fc2 = (jax.tree.map(np.squeeze, params[name]) for name in ("fc1", "fc2"))
  assert fc1["kernel"].shape == (8, 8)
  means = np.asarray(x).mean((1, 2))
  squeezed = np.maximum(means @ fc1["kernel"] + fc1["bias"], 0)
  weights = 1 / (1 + np.exp(-(squeezed @ fc2["kernel"] + fc2["bias"])))
  y = jax.jit(module.apply)({"params": params}, x)
  np.testing.assert_allclose(y, x * weights[:, None, None], rtol=1e-4)


@pytest.mark.parametrize(
  ("channels", "size"),
  [(8, 3), (64, 3), (128, 5), (256, 5), (1024, 5), (2048, 7)],
)
def test_efficient_attention_weighs_channels_by_their_neighbours(
  channels, size
):
  """Of three channels that are left of `channels`."""
  x = normal(7, (4, 3, 3, 11))
  module = EfficientChannelAttention(channels)
  kernel = normal(8, (size, 1, 1))
  means = np.asarray(x).mean((1, 2))
  sums = np.stack([np.correlate(m, kernel[:, 0, 0], "same") for m in means])
  weights = 1 / (1 + np.exp(-sums))
  y = jax.jit(module.apply)({"params": {"conv": {"kernel": kernel}}}, x)
  np.testing.assert_allclose(y, x * weights[:, None, None], rtol=1e-4)
