"""Which paths through a residual network the gradient comes back by.

Veit, Wilber & Belongie 2016 (arXiv:1605.06431), section 4.3: of n blocks, a
path goes through F in k and through the skip in the others. There are n over k
such paths. In the paper's trained net of 54 blocks the gradient of one shrinks
with k, and nearly all of it comes by short paths: the effective depth.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

from flax_resnet import plots
from flax_resnet.insight import pictures
from flax_resnet.models import ResNet
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.variables import unstack, Variables


@dataclasses.dataclass(frozen=True)
class Paths:
  """The gradient of a network by the length of the paths it comes back by.

  Attributes:
    norms: norms of the gradient of the loss at the stem's output through single
      paths, by the number of F that a path goes through: 0, 1, ..., n.
  """

  norms: Sequence[Sequence[float]]

  @property
  def shares(self) -> list[float]:
    """Shares of the gradient by length: number of paths times mean norm."""
    blocks = len(self.norms) - 1
    sizes = [
      math.comb(blocks, length) * float(np.mean(norms))
      for length, norms in enumerate(self.norms)
    ]
    return [size / sum(sizes) for size in sizes]

  @property
  def effective_depth(self) -> float:
    """The mean number of F on a path, weighted by `shares`."""
    return sum(length * share for length, share in enumerate(self.shares))


def trace_paths(
  model: ResNet,
  variables: Variables,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
  draws: int = 10,
  seed: int = 0,
) -> Paths:
  """Returns the gradient of the loss through single paths, drawn at random.

  Forwards, the network is whole and normalizes as in training; backwards, the
  gradient goes through one branch of each block.

  Args:
    model: a residual network; it is compiled once.
    variables: {"params": ..., "batch_stats": ...} of the network.
    images: normalized images, which go through the network together.
    labels: labels of the images.
    draws: number of paths of each length; fewer where there are no more;
      default 10.
    seed: seed of the paths; default 0.

  Raises:
    ValueError: for a plain network, which has one path.
  """
  if model.shortcut == "none":
    raise ValueError(
      "a network with shortcut='none' has one path, through all of its blocks: "
      "give a residual one"
    )
  if model.scan:
    variables = unstack(variables)
  # A loop or remat hides the blocks; the others drop parts of them.
  model = model.clone(
    scan=False, remat=False, stochastic_depth=0.0, dropout=0.0, head_dropout=0.0
  )
  gradient = jax.jit(functools.partial(path_gradient, model))
  count, rng = len(model.block_names), np.random.default_rng(seed)
  norms = []
  for length in range(count + 1):
    norms.append([])
    for _ in range(min(draws, math.comb(count, length))):
      through = np.zeros(count, np.float32)
      through[rng.choice(count, length, replace=False)] = 1
      found = gradient(variables, images, labels, through, 1 - through)
      norms[-1].append(float(jnp.linalg.norm(found.ravel())))
  return Paths(norms)


def path_gradient(
  model: ResNet,
  variables: Variables,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
  branches: Float[Array, " blocks"],
  skips: Float[Array, " blocks"],
) -> Float[Array, "b _ _ _"]:
  """Returns the gradient of the loss at the stem's output, by some paths.

  Args:
    model: the network, without `scan` and `remat`.
    variables: variables of the network.
    images: normalized images.
    labels: labels of the images.
    branches: factor of the gradient through F of each block; 1 leaves it.
    skips: factor of the gradient through the shortcut of each block.
  """
  numbers = {name: n for n, name in enumerate(model.block_names)}

  def loss(zero: Array | float) -> tuple[Array, Array]:
    outputs = []

    def weigh(
      call: Callable, arguments: tuple, keywords: dict, context: Any
    ) -> Any:
      module, result = context.module, call(*arguments, **keywords)
      if context.method_name != "__call__" or not module.path:
        return result
      if module.path == ("stem",):
        before_pool, output = result
        outputs.append(output)
        return before_pool, output + zero
      number = numbers.get(module.path[0])
      if number is None:
        return result
      if isinstance(module, StochasticDepth):  # The last module of F.
        return _scale_gradient(result, branches[number])
      if isinstance(module, Shortcut):
        return _scale_gradient(result, skips[number])
      return result

    with nn.intercept_methods(weigh):
      logits, _ = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
      )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), outputs[0]

  stem = jax.eval_shape(lambda: loss(0.0)[1])
  return jax.grad(loss, has_aux=True)(jnp.zeros(stem.shape, stem.dtype))[0]


def _scale_gradient(x: Array, factor: Array) -> Array:
  """Returns x; the gradient that comes back through it is multiplied."""
  scaled = factor.astype(x.dtype) * x
  return scaled + jax.lax.stop_gradient(x - scaled)


def draw(
  found: Mapping[str, Paths], title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws the gradient of networks by the length of its paths.

  Args:
    found: the paths of networks by their names.
    title: title of the picture.
    path: path of the picture, without ending: PNG and SVG are written.

  Returns:
    The files of the picture.
  """
  return pictures.path_lengths(
    {
      name: [float(np.mean(norms)) for norms in each.norms]
      for name, each in found.items()
    },
    {name: each.shares for name, each in found.items()},
    plots.run_styles(found),
    title,
    path,
  )
