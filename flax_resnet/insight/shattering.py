"""How alike the gradients at neighbouring inputs are.

Balduzzi et al. 2017, "The Shattered Gradients Problem" (arXiv:1702.08591): in
deep plain networks the gradient with regard to the input becomes white noise
along a line of inputs; skips keep it correlated.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from flax_resnet import plots
from flax_resnet.insight import pictures
from flax_resnet.models import ResNet
from flax_resnet.models.norms import BatchNorm
from flax_resnet.models.variables import Variables


def line(
  start: Float[Array, "h w c"], end: Float[Array, "h w c"], count: int = 256
) -> Float[Array, "n h w c"]:
  """Returns images that turn from one image into another, in equal steps.

  They lie on an arc, start * cos(t) + end * sin(t) for t from 0 to pi/2: midway
  on a straight line between two images of noise the contrast would be lower.

  Args:
    start: first image.
    end: last image.
    count: number of images; default 256, as in the paper.
  """
  angles = jnp.linspace(0, jnp.pi / 2, count)[:, None, None, None]
  return start[None] * jnp.cos(angles) + end[None] * jnp.sin(angles)


def autocorrelation(
  model: ResNet,
  variables: Variables,
  points: Float[Array, "n h w c"],
  batch_size: int = 32,
) -> Float[np.ndarray, " n"]:
  """Returns the autocorrelation of the input gradient along a line, by lag.

  The gradient is that of the sum of the outputs. Each BatchNorm normalizes all
  points by the mean and variance that they have together, which do not depend
  on a point: else its gradient would hold those of all others.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of the network; the running
      statistics are not used.
    points: normalized images in equal steps along a line, see `line`.
    batch_size: number of points whose gradients are computed together;
      default 32.

  Returns:
    The autocorrelation at lags 0, 1, ..., n - 1 steps: 1 at lag 0, and near 0
    at all others for white noise. The mean over the line is taken off, and a
    lag's products are summed and not averaged, as in the paper.
  """
  variables = _normalized_by(model, variables, points)

  @jax.jit
  def gradients(images):
    def total(images):
      return cast(Array, model.apply(variables, images, train=False)).sum()

    return jax.grad(total)(images)

  batches = (
    gradients(points[n : n + batch_size])
    for n in range(0, len(points), batch_size)
  )
  found = np.concatenate([np.asarray(each, np.float64) for each in batches])
  found = found.reshape(len(points), -1)
  return correlate(found)


def correlate(series: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
  """Returns the autocorrelation of a series of vectors at lags 0 to n - 1."""
  centered = series - series.mean(0, keepdims=True)
  # The products of all pairs, and their sums along the diagonals.
  products = centered @ centered.T
  sums = np.array([np.trace(products, lag) for lag in range(len(series))])
  return sums / sums[0]


def _normalized_by(
  model: ResNet, variables: Variables, points: Array
) -> Variables:
  """Returns variables whose running statistics are those of some images.

  The old ones weigh nothing in training, and `momentum` after one update.
  """
  if "batch_stats" not in variables:
    return variables

  model = model.clone(stochastic_depth=0.0, dropout=0.0, head_dropout=0.0)

  @jax.jit
  def update(variables):
    _, updated = model.apply(
      variables, points, train=True, mutable=["batch_stats"]
    )
    return updated["batch_stats"]

  old, new = variables["batch_stats"], update(variables)
  kept = BatchNorm.momentum
  return {
    **variables,
    "batch_stats": jax.tree.map(
      lambda new, old: (new - kept * old) / (1 - kept), new, old
    ),
  }


def draw(
  found: Mapping[str, Sequence[float] | np.ndarray],
  title: str,
  path: pathlib.Path,
  num_lags: int = 16,
) -> list[pathlib.Path]:
  """Draws autocorrelations by lag.

  Args:
    found: autocorrelations of networks by their names.
    title: title of the picture.
    path: path of the picture, without ending: PNG and SVG are written.
    num_lags: number of lags that are drawn; default 16.

  Returns:
    The files of the picture.
  """
  curves = {name: list(each[:num_lags]) for name, each in found.items()}
  return pictures.autocorrelations(curves, plots.run_styles(found), title, path)
