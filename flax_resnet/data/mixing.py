"""Mixup, cutmix and random erasing on the device, inside the step.

Random numbers are drawn for the global batch at once, so that they do not
depend on how the batch is laid out over devices.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Images = Float[Array, "b h w c"]
Labels = Int[Array, " b"]
# One row an example; each sums to 1.
SoftTargets = Float[Array, "b n"]
# How much of its partner each pixel of an image takes, and each label.
Shares = tuple[Float[Array, "h w"], Float[Array, ""]]
Mix = Callable[
  [PRNGKeyArray, Images, Labels], tuple[Images, Labels | SoftTargets]
]
ATTEMPTS = 10  # Of random erasing, as in torchvision.


def mixup(
  key: PRNGKeyArray, images: Images, targets: SoftTargets, alpha: float
) -> tuple[Images, SoftTargets]:
  """Blends each image and its target with those of another.

  The weight is drawn once a batch, from Beta(alpha, alpha), as in the code of
  Zhang et al. 2018 (https://arxiv.org/abs/1710.09412).
  """
  return _blend(images, targets, _mixup(key, images, alpha))


def cutmix(
  key: PRNGKeyArray, images: Images, targets: SoftTargets, alpha: float
) -> tuple[Images, SoftTargets]:
  """Pastes a box of another image into each, and mixes the targets by its area.

  The share that is kept is drawn once a batch, from Beta(alpha, alpha), and the
  box, of the shape of the image, about a pixel anywhere in it: what of it lies
  outside is cut off. As in the code of Yun et al. 2019
  (https://arxiv.org/abs/1905.04899).
  """
  return _blend(images, targets, _cutmix(key, images, alpha))


def mixup_or_cutmix(
  key: PRNGKeyArray,
  images: Images,
  targets: SoftTargets,
  mixup_alpha: float,
  cutmix_alpha: float,
) -> tuple[Images, SoftTargets]:
  """Does one of both to a batch, with equal chance."""
  which_key, mixup_key, cutmix_key = jax.random.split(key, 3)
  cut = jax.random.bernoulli(which_key)
  # To draw both costs less than a branch.
  shares = jax.tree.map(
    lambda one, other: jnp.where(cut, one, other),
    _cutmix(cutmix_key, images, cutmix_alpha),
    _mixup(mixup_key, images, mixup_alpha),
  )
  return _blend(images, targets, shares)


def _mixup(key: PRNGKeyArray, images: Images, alpha: float) -> Shares:
  share = jax.random.beta(key, alpha, alpha, dtype=images.dtype)
  return jnp.broadcast_to(share, images.shape[1:3]), share


def _cutmix(key: PRNGKeyArray, images: Images, alpha: float) -> Shares:
  height, width = images.shape[1:3]
  share_key, row_key, column_key = jax.random.split(key, 3)
  side = jnp.sqrt(jax.random.beta(share_key, alpha, alpha))
  rows = _span(row_key, height, side)
  columns = _span(column_key, width, side)
  area = rows.sum() * columns.sum()
  box = (rows[:, None] & columns).astype(images.dtype)
  return box, (area / (height * width)).astype(images.dtype)


def _span(key: PRNGKeyArray, length: int, share: Array) -> Array:
  """Marks this share of a side about a random place: bool [length]."""
  center = jax.random.randint(key, (), 0, length)
  half = (length * share).astype(int) // 2
  place = jnp.arange(length)
  return (center - half <= place) & (place < center + half)


def _blend(
  images: Images, targets: SoftTargets, shares: Shares
) -> tuple[Images, SoftTargets]:
  of_pixel, of_label = shares
  of_pixel = of_pixel[:, :, None]
  return (
    images * (1 - of_pixel) + _partners(images) * of_pixel,
    targets * (1 - of_label) + _partners(targets) * of_label,
  )


def _partners(x: Array) -> Array:
  """Returns, for each example, its neighbour: 1 for 0, 0 for 1, 3 for 2, ...

  The order of a batch is random already. A partner from anywhere in it would
  have to come from another device; a neighbour does not, as long as a device
  has an even number of examples.
  """
  pairs = x.reshape(len(x) // 2, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def random_erasing(
  key: PRNGKeyArray,
  images: Images,
  probability: float,
  scale: tuple[float, float] = (0.02, 0.33),
  ratio: tuple[float, float] = (0.3, 3.3),
) -> Images:
  """Sets a random box of some images to 0, the mean colour.

  Zhong et al. 2017 (https://arxiv.org/abs/1708.04896), drawn as torchvision
  does: of ten boxes, the first that is smaller than the image.

  Args:
    key: Random key.
    images: [b, h, w, c], normalised.
    probability: Of each image to be erased.
    scale: Range of the box's share of the area; drawn uniformly.
    ratio: Range of its height over its width; drawn log-uniformly.
  """
  number, height, width = images.shape[:3]
  chosen_key, size_key, row_key, column_key = jax.random.split(key, 4)
  chosen = jax.random.bernoulli(chosen_key, probability, (number,))
  h, w, fits = _first_box(size_key, (number, height, width), scale, ratio)
  rows = _random_span(row_key, height, h)
  columns = _random_span(column_key, width, w)
  box = rows[:, :, None] & columns[:, None, :]
  return jnp.where((box & (chosen & fits)[:, None, None])[..., None], 0, images)


def _first_box(
  key: PRNGKeyArray,
  shape: tuple[int, int, int],
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[Int[Array, "b 1"], Int[Array, "b 1"], Bool[Array, " b"]]:
  """Returns height and width of a box for each image, and whether it fits."""
  number, height, width = shape
  area_key, ratio_key = jax.random.split(key)
  tries = (number, ATTEMPTS)
  area = jax.random.uniform(area_key, tries, float, *scale) * height * width
  log_ratio = map(math.log, ratio)
  aspect = jnp.exp(jax.random.uniform(ratio_key, tries, float, *log_ratio))
  h = jnp.round(jnp.sqrt(area * aspect)).astype(int)
  w = jnp.round(jnp.sqrt(area / aspect)).astype(int)
  fits = (h < height) & (w < width)
  first = fits.argmax(1)[:, None]
  h, w = (jnp.take_along_axis(each, first, 1) for each in (h, w))
  return h, w, fits.any(1)


def _random_span(key: PRNGKeyArray, length: int, size: Array) -> Array:
  """Marks `size` [b, 1] places of a side, anywhere: bool [b, length]."""
  start = jax.random.randint(key, size.shape, 0, length - size + 1)
  place = jnp.arange(length)
  return (start <= place) & (place < start + size)


def make_mix(
  *, mixup_alpha: float, cutmix_alpha: float, num_classes: int, batch_size: int
) -> Mix:
  """Returns what is done to a batch of normalised images and its labels.

  Args:
    mixup_alpha: See `mixup`; 0 for none.
    cutmix_alpha: See `cutmix`; 0 for none. With both, see `mixup_or_cutmix`.
    num_classes: Of the targets. Labels that are not mixed stay as they are.
    batch_size: Of the global batch.

  Raises:
    ValueError: For a number out of its range, and for a batch without pairs.
  """
  for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)):
    if not 0 <= alpha < math.inf:
      raise ValueError(f"{name} is {alpha}: use 0 or more")
  if not mixup_alpha and not cutmix_alpha:
    return lambda key, images, labels: (images, labels)
  if batch_size % 2:
    raise ValueError(
      f"batch_size is {batch_size}, and mixup and cutmix take examples in "
      "pairs: use an even one"
    )

  def mix(key, images, labels):
    targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    if not cutmix_alpha:
      return mixup(key, images, targets, mixup_alpha)
    if not mixup_alpha:
      return cutmix(key, images, targets, cutmix_alpha)
    return mixup_or_cutmix(key, images, targets, mixup_alpha, cutmix_alpha)

  return mix
