"""How large F(x) is beside x: through training, and from image to image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from flax_resnet.insight import pictures
from flax_resnet.models import ResNet
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.variables import unstack, Variables


@dataclasses.dataclass(frozen=True)
class Residuals:
  """Norm of F(x) over norm of x at the blocks of a network.

  Attributes:
    names: names of the n blocks, first to last.
    ratios: float [n, images] by the step of training, which rises. x is what
      F(x) is added to: behind the shortcut.
  """

  names: Sequence[str]
  ratios: Mapping[int, np.ndarray]

  @property
  def last(self) -> np.ndarray:
    """Ratios at the last step, float [n, images]."""
    return self.ratios[max(self.ratios)]

  def medians(self) -> dict[int, np.ndarray]:
    """Returns the medians over the images by step, float [n]."""
    return {step: np.median(each, 1) for step, each in self.ratios.items()}


def measure_residuals(
  model: ResNet,
  states: Iterable[tuple[int, Variables]],
  images: Float[Array, "b h w c"],
) -> Residuals:
  """Returns how large F(x) is beside x at each block, step and image.

  The network normalizes the images as in training, by what they have together:
  the running statistics of the first steps are those of no network.

  Args:
    model: a residual network; it is compiled once.
    states: steps of training, each with the variables of the network then.
    images: normalized images, which go through the network together.

  Raises:
    ValueError: for a plain network, which adds nothing to its F(x).
  """
  if model.shortcut == "none":
    raise ValueError(
      "a network with shortcut='none' adds no x to its F(x): give a residual "
      "one"
    )
  # A loop or remat hides the blocks; the others drop parts of them.
  whole = model.clone(
    scan=False, remat=False, stochastic_depth=0.0, dropout=0.0, head_dropout=0.0
  )

  @jax.jit
  def measure(variables: Variables) -> Float[Array, "n b"]:
    return _ratios(whole, variables, images)

  ratios = {
    step: np.asarray(measure(unstack(each) if model.scan else each))
    for step, each in states
  }
  return Residuals(model.block_names, dict(sorted(ratios.items())))


def _ratios(
  model: ResNet, variables: Variables, images: Array
) -> Float[Array, "n b"]:
  branches, skips = {}, {}

  def note(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    module, result = context.module, call(*arguments, **keywords)
    if context.method_name == "__call__" and module.path:
      if isinstance(module, StochasticDepth):  # The last module of F.
        branches[module.path[0]] = _norms(result)
      elif isinstance(module, Shortcut):
        skips[module.path[0]] = _norms(result)
    return result

  with nn.intercept_methods(note):
    model.apply(variables, images, train=True, mutable=["batch_stats"])
  return jnp.stack([branches[name] / skips[name] for name in model.block_names])


def _norms(x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
  return jnp.linalg.norm(x.astype(jnp.float32).reshape(len(x), -1), axis=1)


def draw(
  found: Mapping[str, Residuals], title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws the ratios of networks by their names.

  By step, the median over the images at each block; at the last step, the
  median and what lies between a tenth and nine tenths of the images.

  Args:
    found: the ratios.
    title: title of the picture.
    path: path of the picture, without ending: PNG and SVG are written.

  Returns:
    The files of the picture.
  """
  return pictures.residuals_by_step(
    {name: each.medians() for name, each in found.items()},
    {
      name: np.quantile(each.last, (0.1, 0.5, 0.9), axis=1)
      for name, each in found.items()
    },
    title,
    path,
  )
