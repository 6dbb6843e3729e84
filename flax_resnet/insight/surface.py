"""The loss on a plane through the parameters of a trained network.

Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets"
(arXiv:1712.09913): two random directions, each filter of which is as long as
that of the network, so that surfaces of networks can be compared.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

from flax_resnet.insight import pictures
from flax_resnet.models import ResNet
from flax_resnet.models.variables import unstack, Variables

# Images that go through the network together: more are not faster on a CPU.
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Surface:
  """The loss of a network around its parameters.

  Attributes:
    steps: steps along both directions, from -extent to extent; that in the
      middle is 0.
    losses: float32 [n, n], mean cross-entropy in nats; `losses[i, j]` is that
      at the parameters + steps[i] * first + steps[j] * second direction.
  """

  steps: np.ndarray
  losses: np.ndarray

  @property
  def center(self) -> float:
    """The loss of the network itself."""
    middle = len(self.steps) // 2
    return float(self.losses[middle, middle])

  def share_below(self, loss: float) -> float:
    """Returns the share of the points with a lower loss than this one."""
    return float((self.losses < loss).mean())


def random_direction(params: Any, rng: np.random.Generator) -> Any:
  """Returns a random direction whose filters have the norms of those of params.

  Of arrays of two axes or more, a filter is a slice of the last axis: all
  weights of one output. Biases, and scale and bias of BatchNorm, do not move:
  their direction is 0, as in the paper and its code.

  Args:
    params: parameters of a network.
    rng: generator of the random numbers, which are normal.

  Returns:
    float32 arrays of the shapes of the parameters.
  """
  return jax.tree.map(lambda weights: _direction(weights, rng), params)


def _direction(weights: Array, rng: np.random.Generator) -> np.ndarray:
  # NumPy draws them: JAX would compile each shape.
  if weights.ndim < 2:
    return np.zeros(weights.shape, np.float32)
  columns = np.asarray(weights, np.float32).reshape(-1, weights.shape[-1])
  drawn = rng.standard_normal(columns.shape, np.float32)
  lengths = np.linalg.norm(columns, axis=0) / np.linalg.norm(drawn, axis=0)
  return (drawn * lengths).reshape(weights.shape)


def loss_surface(
  model: ResNet,
  variables: Variables,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
  points: int = 21,
  extent: float = 1.0,
  seed: int = 0,
) -> Surface:
  """Returns the loss of a network on a plane of random directions.

  The network is evaluated, in float32: BatchNorm keeps its running statistics
  everywhere on the plane, as in the code of the paper, and normalizes by what
  it saw in the middle.

  Args:
    model: the network; one row of the plane is compiled, once.
    variables: {"params": ..., "batch_stats": ...} of the network.
    images: normalized images.
    labels: labels of the images.
    points: points along each direction, an odd number; default 21.
    extent: largest step along each direction, in lengths of the filters;
      default 1, as in the paper.
    seed: seed of the directions; default 0.

  Raises:
    ValueError: if no point is in the middle.
  """
  if points < 3 or points % 2 == 0:
    raise ValueError(
      f"points is {points}: use an odd number from 3, so that the network "
      "itself is the point in the middle"
    )
  if model.scan:
    variables = unstack(variables)
  model = model.clone(scan=False, remat=False, dtype=jnp.float32)
  rng = np.random.default_rng(seed)
  directions = [random_direction(variables["params"], rng) for _ in range(2)]
  batches = _batches(images, labels)
  steps = np.linspace(-extent, extent, points, dtype=np.float32)
  row = jax.jit(functools.partial(_losses_of_row, model))
  losses = [row(variables, directions, batches, x, steps) for x in steps]
  return Surface(steps, np.stack([np.asarray(each) for each in losses]))


def _batches(images: Array, labels: Array) -> tuple[Array, Array, Array]:
  """Returns images, labels and what each counts, [batches, rows, ...]."""
  count = math.ceil(len(images) / _BATCH_SIZE)
  rows = math.ceil(len(images) / count)
  weights = jnp.full(len(images), 1 / len(images), jnp.float32)

  def split(x: Array) -> Array:
    padding = [(0, count * rows - len(x)), *[(0, 0)] * (x.ndim - 1)]
    return jnp.pad(x, padding).reshape(count, rows, *x.shape[1:])

  return split(images), split(labels), split(weights)


def _losses_of_row(
  model: ResNet,
  variables: Variables,
  directions: list[Any],
  batches: tuple[Array, Array, Array],
  x: Array,
  steps: Float[Array, " n"],
) -> Float[Array, " n"]:
  """Returns the losses at a step of the first direction, and all of the other.

  A loop over points, and over batches in each: one network is compiled.
  """

  def loss(y: Array) -> Array:
    params = jax.tree.map(
      lambda w, first, second: w + x * first + y * second,
      variables["params"],
      *directions,
    )

    def loss_of_batch(batch: tuple[Array, Array, Array]) -> Array:
      images, labels, weights = batch
      logits = model.apply({**variables, "params": params}, images, train=False)
      losses = optax.softmax_cross_entropy_with_integer_labels(
        cast(Array, logits), labels
      )
      # What fills up a batch counts nothing, even if its loss is not finite.
      return jnp.where(weights > 0, losses * weights, 0).sum()

    return jax.lax.map(loss_of_batch, batches).sum()

  return jax.lax.map(loss, steps)


def draw(
  found: Mapping[str, Surface], title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws surfaces of networks by their names, all with the same scale.

  Args:
    found: the surfaces.
    title: title of the picture.
    path: path of the picture, without ending: PNG and SVG are written.

  Returns:
    The files of the picture.
  """
  return pictures.loss_surfaces(
    {name: (each.steps, each.losses) for name, each in found.items()},
    title,
    path,
  )
