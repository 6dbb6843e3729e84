"""Where a network looks: Grad-CAM and Grad-CAM++.

Selvaraju et al. 2017 (arXiv:1610.02391) and Chattopadhay et al. 2018
(arXiv:1710.11063), as the package `grad-cam` of PyTorch computes them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import os
from typing import Any, cast

import cv2
from flax import linen as nn
import jax
from jax import core
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from flax_resnet.augment import normalize
from flax_resnet.errors import ImageError, suggestion
from flax_resnet.models import ResNet
from flax_resnet.models.variables import unstack, Variables
from flax_resnet.predictor import Predictor

Images = Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]
Classes = Sequence[int] | Int[Array, " b"] | Int[np.ndarray, " b"]
# Sides of overlays in pixels, at least: a picture of 16 pixels shows nothing.
MIN_SIDE = 224
# What the package `grad-cam` adds to a divisor, of the scaling and of
# Grad-CAM++; the gradients of a mean over a map are smaller than the latter.
_EPSILON, _EPSILON_PLUS_PLUS = 1e-7, 1e-6


def grad_cam(
  model: ResNet,
  variables: Variables,
  images: Images,
  classes: Classes | None = None,
  stage: str | None = None,
) -> Float[Array, "b h w"]:
  """Returns where a network looks for a class: Grad-CAM.

  The channels of a map are weighted by the mean gradient of the class's logit,
  summed, cut off at 0, scaled to [0, 1] and resized bilinearly to the images.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of the network.
    images: normalized images.
    classes: class of each image, in [0, num_classes); default None: the one
      with the largest logit.
    stage: stage whose map is taken, "stage1", "stage2", ..., as
      `method="features"` names them; default None: the last one.

  Returns:
    float32 maps in [0, 1], each with 1 at its largest value; 0 everywhere
    where nothing speaks for the class.

  Raises:
    ValueError: for a network without a head, another stage, or classes that it
      does not have.
  """
  return explain(model, variables, images, classes, stage)[0]


def grad_cam_plus_plus(
  model: ResNet,
  variables: Variables,
  images: Images,
  classes: Classes | None = None,
  stage: str | None = None,
) -> Float[Array, "b h w"]:
  """Returns where a network looks for a class: Grad-CAM++.

  The channels are weighted by positive gradients, each by its share of the
  class's evidence, so that several objects of a class are all found. Arguments,
  maps and errors are those of `grad_cam`.
  """
  return explain(model, variables, images, classes, stage, plus_plus=True)[0]


def explain(
  model: ResNet,
  variables: Variables,
  images: Images,
  classes: Classes | None = None,
  stage: str | None = None,
  *,
  plus_plus: bool = False,
) -> tuple[Float[Array, "b h w"], Float[Array, "b n"]]:
  """Returns the maps of `grad_cam` or `grad_cam_plus_plus`, and the logits.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of the network.
    images: normalized images.
    classes: class of each image, as in `grad_cam`.
    stage: stage whose map is taken, as in `grad_cam`.
    plus_plus: whether the maps are those of Grad-CAM++; default False.

  Raises:
    ValueError: as in `grad_cam`.
  """
  if not model.num_classes:
    raise ValueError("the network has no head: there are no classes")
  stages = [f"stage{n + 1}" for n in range(len(model.stage_sizes))]
  stage = stages[-1] if stage is None else stage
  if stage not in stages:
    raise ValueError(f"stage is {stage!r}: {suggestion(str(stage), stages)}")
  if classes is not None:
    classes = jnp.asarray(classes)
    _check_classes(classes, len(images), model.num_classes)
  return _explain(model, variables, images, classes, stage, plus_plus)


def _check_classes(classes: Array, images: int, num_classes: int) -> None:
  if classes.shape != (images,) or not jnp.issubdtype(
    classes.dtype, jnp.integer
  ):
    raise ValueError(
      f"classes are {classes.dtype} {list(classes.shape)}: give one whole "
      f"number for each of the {images} images"
    )
  if isinstance(classes, core.Tracer):  # Their values come later.
    return
  if ((classes < 0) | (classes >= num_classes)).any():
    raise ValueError(
      f"classes are {classes.min()} to {classes.max()}: use 0 to "
      f"{num_classes - 1}"
    )


@functools.partial(jax.jit, static_argnames=("model", "stage", "plus_plus"))
def _explain(
  model: ResNet,
  variables: Variables,
  images: Images,
  classes: Array | None,
  stage: str,
  plus_plus: bool,
) -> tuple[Array, Array]:
  if model.scan:
    variables = unstack(variables)
  model = model.clone(scan=False, remat=False)  # Both hide the blocks.
  maps = jax.eval_shape(
    functools.partial(model.apply, train=False, method="features"),
    variables,
    images,
  )
  zeros = jnp.zeros(maps[stage].shape, maps[stage].dtype)

  def score(offset: Array) -> tuple[Array, tuple[Array, Array]]:
    activations, logits = _forward(model, variables, images, stage, offset)
    chosen = logits.argmax(-1) if classes is None else classes
    of_class = jnp.take_along_axis(logits, chosen[:, None], -1)
    return of_class.sum(), (activations, logits)

  # The gradient at what is added to a map is that at the map: the layers before
  # it are computed forwards alone.
  gradients, (activations, logits) = jax.grad(score, has_aux=True)(zeros)
  gradients, activations = (
    x.astype(jnp.float32) for x in (gradients, activations)
  )
  if plus_plus:
    weights = _weights_plus_plus(activations, gradients)
  else:
    weights = gradients.mean((1, 2), keepdims=True)
  cam = nn.relu((weights * activations).sum(-1))
  size = (len(images), *images.shape[1:3])
  resized = jax.image.resize(_scaled(cam), size, "linear", antialias=False)
  return _scaled(resized), logits


def _forward(
  model: ResNet, variables: Variables, images: Images, stage: str, offset: Array
) -> tuple[Array, Array]:
  """Returns the map of a stage, to which `offset` is added, and the logits."""
  number = int(stage.removeprefix("stage"))
  if number == len(model.stage_sizes):  # The head alone is behind it.
    maps = model.apply(variables, images, train=False, method="features")
    last = cast(dict[str, Array], maps)[stage]
    logits = model.apply(variables, last + offset, train=False, method="head")
    return last, cast(Array, logits)
  module = f"{stage}_block{model.stage_sizes[number - 1]}"
  found = []

  def add_offset(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    result = call(*arguments, **keywords)
    if context.module.path != (module,) or context.method_name != "__call__":
      return result
    found.append(result)
    return result + offset

  with nn.intercept_methods(add_offset):
    logits = model.apply(variables, images, train=False)
  return found[0], cast(Array, logits)


def _weights_plus_plus(
  activations: Float[Array, "b h w c"], gradients: Float[Array, "b h w c"]
) -> Float[Array, "b 1 1 c"]:
  """Returns the weights of equation 19 of Chattopadhay et al. 2018."""
  total = activations.sum((1, 2), keepdims=True)
  divisor = 2 * gradients**2 + total * gradients**3 + _EPSILON_PLUS_PLUS
  shares = jnp.where(gradients != 0, gradients**2 / divisor, 0)
  return (nn.relu(gradients) * shares).sum((1, 2), keepdims=True)


def _scaled(cam: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
  """Returns maps whose smallest value is 0 and whose largest is 1."""
  cam = cam - cam.min((1, 2), keepdims=True)
  return cam / (_EPSILON + cam.max((1, 2), keepdims=True))


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What a network makes of an image, and where it looks.

  Attributes:
    probabilities: float [n], probabilities of the classes.
    pixels: uint8 [h, w, c], what went into the network.
    cam: float [h, w], in [0, 1]: Grad-CAM of the most probable class.
  """

  probabilities: np.ndarray
  pixels: np.ndarray
  cam: np.ndarray


def explain_each(
  predictor: Predictor,
  paths: Iterable[str | os.PathLike],
  batch_size: int = 32,
) -> Iterator[Explanation | ImageError]:
  """Yields what a network makes of each file, or its error, in order.

  Args:
    predictor: the trained network.
    paths: paths of image files, see `predictor.find_images`.
    batch_size: number of files that go through the network together.
  """
  mean, std = predictor.preprocessing.mean, predictor.preprocessing.std

  @jax.jit
  def compute(variables: Variables, pixels: Array) -> tuple[Array, Array]:
    scaled = normalize(pixels, mean, std)
    cams, logits = explain(predictor.model, variables, scaled)
    return cams, predictor.probabilities(logits)

  for pixels, errors in predictor.read_batches(paths, batch_size):
    cams, probabilities = map(
      np.asarray, compute(predictor.variables, jnp.asarray(pixels))
    )
    for row, error in enumerate(errors):
      if error is not None:
        yield error
      else:
        yield Explanation(probabilities[row], pixels[row], cams[row])


def overlay(
  image: UInt8[np.ndarray, "h w c"],
  cam: Float[np.ndarray, "h w"],
  min_side: int = MIN_SIDE,
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Returns an image with a map in colors over it, the stronger the more.

  Args:
    image: pixels of one or three channels.
    cam: map in [0, 1] of the same height and width.
    min_side: side in pixels, up to which a smaller image is enlarged by a whole
      factor; default 224.
  """
  factor = max(1, -(-min_side // min(image.shape[:2])))
  size = (factor * image.shape[1], factor * image.shape[0])
  colors = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1)
  colors = cv2.resize(colors, size, interpolation=cv2.INTER_NEAREST)
  heat = cv2.resize(np.nan_to_num(cam), size, interpolation=cv2.INTER_LINEAR)
  levels = np.round(255 * heat).astype(np.uint8)
  map_colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
  share = 0.65 * heat[..., None]
  blended = (1 - share) * colors + share * map_colors
  return np.round(blended).astype(np.uint8)
