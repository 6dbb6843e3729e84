"""Blocks removed from a trained network, and put in another order.

Veit, Wilber & Belongie 2016 (arXiv:1605.06431): a residual network without one
of its blocks is nearly as good, as most of its paths do not lead through it; a
plain network is not.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from flax_resnet import plots
from flax_resnet.insight import pictures
from flax_resnet.models import ResNet
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.variables import unstack, Variables


@dataclasses.dataclass(frozen=True)
class Lesions:
  """Accuracies of a network with some of its blocks.

  Attributes:
    names: names of the blocks, first to last.
    intact: accuracy of the whole network, in [0, 1].
    without: accuracy without each block; None for a block of a plain network
      that changes the shape of its input, as nothing can stand in its place.
    removed: accuracies by the number of blocks that were removed at random.
    reordered: Kendall's rank correlation with the trained order, in [-1, 1],
      and accuracy of networks whose blocks were swapped within their stages.
  """

  names: Sequence[str]
  intact: float
  without: Sequence[float | None]
  removed: dict[int, list[float]]
  reordered: list[tuple[float, float]]


def lesion(
  model: ResNet,
  variables: Variables,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
  draws: int = 5,
  seed: int = 0,
) -> Lesions:
  """Returns how a network does without some of its blocks.

  Of a residual block F(x) is removed, and its shortcut stays; of a plain one,
  the block. Nothing is trained again.

  Args:
    model: the network; it is compiled once.
    variables: {"params": ..., "batch_stats": ...} of the network.
    images: normalized images, which go through the network together.
    labels: labels of the images.
    draws: number of random choices for each number of blocks, and ten times as
      many orders; default 5.
    seed: seed of these choices; default 0.
  """
  if model.scan:
    variables = unstack(variables)
  model = model.clone(scan=False, remat=False)  # Both hide the blocks.
  removable = _removable(model, variables, images)
  count, rng = len(model.block_names), np.random.default_rng(seed)
  predict = jax.jit(functools.partial(_predict, model))

  def accuracy(removed: Sequence[int], net: Variables = variables) -> float:
    keep = np.ones(count, np.float32)
    keep[list(removed)] = 0
    return float((predict(net, images, keep) == labels).mean())

  chosen = np.flatnonzero(removable)
  return Lesions(
    names=model.block_names,
    intact=accuracy([]),
    without=[accuracy([n]) if removable[n] else None for n in range(count)],
    removed={
      number: [
        accuracy(rng.choice(chosen, number, replace=False).tolist())
        for _ in range(draws)
      ]
      for number in range(1, len(chosen) + 1)
    },
    reordered=[
      (correlation, accuracy([], shuffled))
      for correlation, shuffled in (
        _shuffled(model, variables, rng, swaps)
        for swaps in range(1, 10 * draws + 1)
      )
      if correlation < 1
    ],
  )


def _predict(
  model: ResNet,
  variables: Variables,
  images: Array,
  keep: Float[Array, " blocks"],
) -> Int[Array, " b"]:
  """Returns the classes of images, with each block or without, as `keep` is."""
  numbers = {name: n for n, name in enumerate(model.block_names)}

  def cut(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    module, result = context.module, call(*arguments, **keywords)
    if context.method_name != "__call__" or module.path[:1] == ():
      return result
    number = numbers.get(module.path[0])
    if number is None:
      return result
    if model.shortcut != "none":  # The last module of F.
      of_branch = isinstance(module, StochasticDepth)
      return result * keep[number].astype(result.dtype) if of_branch else result
    x = arguments[0]
    if len(module.path) == 1 and x.shape == result.shape:
      return jnp.where(keep[number] > 0, result, x)
    return result

  with nn.intercept_methods(cut):
    logits = model.apply(variables, images, train=False)
  return cast(Array, logits).argmax(-1)


def _removable(
  model: ResNet, variables: Variables, images: Array
) -> list[bool]:
  """Returns of each block whether the network is one without it."""
  if model.shortcut != "none":
    return [True] * len(model.block_names)
  shapes = {}

  def note(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    result = call(*arguments, **keywords)
    if context.method_name == "__call__" and len(context.module.path) == 1:
      shapes[context.module.path[0]] = (
        arguments[0].shape,
        getattr(result, "shape", None),
      )
    return result

  with nn.intercept_methods(note):
    jax.eval_shape(
      functools.partial(model.apply, train=False), variables, images
    )
  return [len(set(shapes[name])) == 1 for name in model.block_names]


def _shuffled(
  model: ResNet,
  variables: Variables,
  rng: np.random.Generator,
  swaps: int,
) -> tuple[float, Variables]:
  """Returns the network with blocks of a stage swapped, and the correlation.

  The first block of a stage stays, as its shape is another.
  """
  order = np.arange(len(model.block_names))
  starts = np.cumsum([0, *model.stage_sizes[:-1]])
  groups = [
    np.arange(start + 1, start + size)
    for start, size in zip(starts, model.stage_sizes, strict=True)
    if size > 2
  ]
  for _ in range(swaps if groups else 0):
    pair = rng.choice(groups[rng.integers(len(groups))], 2, replace=False)
    order[pair] = order[pair[::-1]]
  names = model.block_names
  shuffled = {
    collection: {
      **tree,
      **{
        names[place]: tree[names[block]]
        for place, block in enumerate(order)
        if names[block] in tree
      },
    }
    for collection, tree in variables.items()
  }
  return _kendall(order), shuffled


def _kendall(order: np.ndarray) -> float:
  """Returns the rank correlation of an order with 0, 1, 2, ..., in [-1, 1]."""
  later = np.sign(order[None] - order[:, None])
  pairs = len(order) * (len(order) - 1) / 2
  return float(np.triu(later, 1).sum() / max(pairs, 1))


def draw(
  found: dict[str, Lesions], title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws the lesions of networks by their names.

  Args:
    found: the lesions.
    title: title of the picture.
    path: path of the picture, without ending: PNG and SVG are written.

  Returns:
    The files of the picture.
  """
  return pictures.lesions(
    {name: each.without for name, each in found.items()},
    {name: each.removed for name, each in found.items()},
    {name: each.reordered for name, each in found.items()},
    plots.run_styles(found),
    title,
    path,
  )
