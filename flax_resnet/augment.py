"""Augmentation on the device, inside the step: step 5 of the way of a batch.

Random numbers are drawn for the global batch at once, so that they do not
depend on how the batch is laid out over devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from flax_resnet import photometric
from flax_resnet.schema import NotNegative, Positive, Range, Share

Images = Float[Array, "b h w c"]
# A class an example, or 1 for each of its classes.
Labels = Int[Array, " b"] | UInt8[Array, "b n"]
# One row an example; each sums to 1, if it has one label.
SoftTargets = Float[Array, "b n"]
Normalize = Callable[[UInt8[Array, "b h w c"]], Images]
# The last is the number of completed updates.
Augment = Callable[
  [PRNGKeyArray, UInt8[Array, "b h w c"], Labels, Int[Array, ""]],
  tuple[Images, Labels | SoftTargets],
]
# How much of its partner each pixel of an image takes, and each target.
Weights = tuple[Float[Array, "h w"], Float[Array, ""]]

ERASING_ATTEMPTS = 10  # As in torchvision.


def make_augment(
  *,
  mean: Sequence[float],
  std: Sequence[Positive],
  flip: bool = False,
  vertical_flip: bool = False,
  crop_padding: Annotated[int, Range(minimum=0, maximum=512)] = 0,
  rotation: NotNegative = 0.0,
  translation: NotNegative = 0.0,
  scaling: NotNegative = 0.0,
  shear: NotNegative = 0.0,
  brightness: NotNegative = 0.0,
  contrast: NotNegative = 0.0,
  saturation: NotNegative = 0.0,
  hue: Annotated[float, Range(minimum=0, maximum=0.5)] = 0.0,
  blur: Share = 0.0,
  blur_sigma: Sequence[Annotated[float, Range(above=0, maximum=64)]] = (
    0.1,
    2.0,
  ),
  mixup: NotNegative = 0.0,
  cutmix: NotNegative = 0.0,
  mixup_off_epoch: NotNegative = 0.0,
  random_erasing: Share = 0.0,
  channels: int,
  num_classes: int,
  batch_size: int,
  steps_per_epoch: float = 1.0,
  dtype: DTypeLike = jnp.float32,
) -> tuple[Augment, Normalize]:
  """Returns the augmentation of a batch, and the normalization of images.

  Training takes the first, evaluation the second. The order is that of timm:
  images are mixed, and then erased.

  Args:
    mean: means by channel, of images scaled to [0, 1].
    std: standard deviations by channel, of images scaled to [0, 1].
    flip: whether to mirror left to right, as `random_flip`; default False.
    vertical_flip: whether to mirror top to bottom as well, each image or not;
      default False.
    crop_padding: zeros on each side in pixels, 0 to 512, for `random_crop`;
      default 0 for none.
    rotation: largest angle in degrees, for `random_affine`; default 0.
    translation: largest shift as a share of the side; default 0.
    scaling: largest logarithm of the factor; default 0.
    shear: largest tangent of the angle; default 0.
    brightness: largest change of the brightness, for `photometric.jitter`;
      default 0.
    contrast: largest change of the contrast; default 0.
    saturation: largest change of the saturation; default 0.
    hue: largest turn of the hue, in turns, 0 to 0.5; default 0.
    blur: probability of each image to be blurred, for
      `photometric.random_blur`, in [0, 1]; default 0.
    blur_sigma: range of the blur's standard deviation in pixels, above 0;
      default (0.1, 2), that of SimCLR.
    mixup: alpha of mixup, see `mix`; default 0 for none. With `cutmix` as well,
      each step does one of them.
    cutmix: alpha of cutmix, see `mix`; default 0 for none.
    mixup_off_epoch: epoch from which images are no longer mixed, as in timm;
      default 0 for none.
    random_erasing: probability of each image to be erased, as `random_erase`,
      in [0, 1]; default 0.
    channels: channels of the images.
    num_classes: classes of the targets; labels that are not mixed stay
      integers.
    batch_size: examples of the global batch.
    steps_per_epoch: steps in which each training example is seen once; default
      1.
    dtype: type of the images and of mixed targets; default float32.

  Raises:
    ValueError: for numbers that do not fit the channels, and for a batch that
      cannot be mixed.
  """
  for name, numbers in (("mean", mean), ("std", std)):
    if len(numbers) != channels:
      raise ValueError(
        f"{name} has {len(numbers)} numbers and the images {channels} "
        "channels: give one number a channel"
      )
  if (mixup or cutmix) and batch_size % 2:
    raise ValueError(
      f"batch_size is {batch_size}, and mixup and cutmix take examples in "
      "pairs: use an even one"
    )
  if len(blur_sigma) != 2 or blur_sigma[0] > blur_sigma[1]:
    raise ValueError(
      f"blur_sigma is {tuple(blur_sigma)}: use two numbers, the smaller first"
    )
  low, high = blur_sigma
  if mixup_off_epoch and not (mixup or cutmix):
    raise ValueError(
      f"mixup_off_epoch is {mixup_off_epoch} and nothing is mixed: use 0, or "
      "set mixup or cutmix"
    )
  off_step = round(mixup_off_epoch * steps_per_epoch)
  affine = {
    "rotation": rotation,
    "translation": translation,
    "scaling": scaling,
    "shear": shear,
  }
  jitter = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
  }

  def normalized(images):
    return normalize(images, mean, std, dtype)

  def augment(key, images, labels, step: jax.Array | int = 0):
    flip_key, crop_key, affine_key = jax.random.split(key, 3)
    # Not the 1 of the step's dropout; 0, 1 and 2 are also those of the split.
    mix_key, erase_key = jax.random.split(jax.random.fold_in(key, 3))
    images, targets = scale(images, dtype), labels
    if any(jitter.values()):
      jitter_key = jax.random.fold_in(key, 4)
      images = photometric.jitter(jitter_key, images, **jitter)
    if blur:
      blur_key = jax.random.fold_in(key, 5)
      images = photometric.random_blur(blur_key, images, blur, (low, high))
    images = standardize(images, mean, std)
    if labels.ndim == 2:
      targets = labels.astype(images.dtype)
    if any(affine.values()):
      images = random_affine(affine_key, images, **affine)
    if flip:
      images = random_flip(flip_key, images)
    if vertical_flip:
      vertical_key = jax.random.fold_in(key, 6)
      images = random_flip(vertical_key, images, axis=1)
    if crop_padding:
      images = random_crop(crop_key, images, crop_padding)
    if mixup or cutmix:
      if labels.ndim == 1:
        targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
      mixing = partial(mix, mix_key, mixup=mixup, cutmix=cutmix)
      if not off_step:
        images, targets = mixing(images, targets)
      else:
        images, targets = jax.lax.cond(
          step < off_step, mixing, lambda *same: same, images, targets
        )
    if random_erasing:
      images = random_erase(erase_key, images, random_erasing)
    return images, targets

  return augment, normalized


def normalize(
  images: UInt8[Array, "b h w c"],
  mean: Sequence[float],
  std: Sequence[float],
  dtype: DTypeLike = jnp.float32,
) -> Images:
  """Scales uint8 to [0, 1], then to mean 0 and variance 1 by channel."""
  return standardize(scale(images, dtype), mean, std)


def scale(images: UInt8[Array, "b h w c"], dtype: DTypeLike) -> Images:
  """Scales uint8 to [0, 1]."""
  return images.astype(dtype) / 255


def standardize(
  images: Images, mean: Sequence[float], std: Sequence[float]
) -> Images:
  """Scales images to mean 0 and variance 1 by channel."""
  by_channel = (None, None, None, slice(None))
  centered = images - jnp.asarray(mean, images.dtype)[by_channel]
  return centered / jnp.asarray(std, images.dtype)[by_channel]


def random_flip(key: PRNGKeyArray, images: Images, axis: int = 2) -> Images:
  """Mirrors each image along an axis, or not; left to right by default."""
  flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flip, jax.lax.rev(images, (axis,)), images)


def random_crop(key: PRNGKeyArray, images: Images, padding: int) -> Images:
  """Pads each image with zeros (the mean color) and crops it back at random.

  He et al. 2015, section 4.2, with `padding=4`.
  """
  border = (padding, padding)
  padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

  def crop(image, corner):
    start = (corner[0], corner[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(padded, corners)


def random_affine(
  key: PRNGKeyArray,
  images: Images,
  rotation: float = 0.0,
  translation: float = 0.0,
  scaling: float = 0.0,
  shear: float = 0.0,
) -> Images:
  """Rotates, shears, scales and shifts each image about its center.

  Each amount is drawn uniformly from [-x, x]; bilinear, edges repeated.

  Args:
    key: random key.
    images: [b, h, w, c].
    rotation: largest angle in degrees.
    translation: largest shift in each direction, as a share of the side.
    scaling: largest logarithm of the factor in each direction.
    shear: largest tangent of the angle.
  """
  height, width = images.shape[1:3]
  limits = jnp.asarray(
    [jnp.deg2rad(rotation), shear, scaling, scaling, translation, translation],
    images.dtype,
  )
  drawn = jax.random.uniform(
    key, (len(images), 6), images.dtype, minval=-1, maxval=1
  )
  amounts = limits[None] * drawn
  rows, columns = jnp.meshgrid(
    jnp.arange(height, dtype=images.dtype) - (height - 1) / 2,
    jnp.arange(width, dtype=images.dtype) - (width - 1) / 2,
    indexing="ij",
  )

  def warp(image, amount):
    angle, tangent, log_h, log_w, down, right = amount
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Where each pixel of the result comes from: the inverse map.
    y = (cos * rows - sin * columns) * jnp.exp(log_h)
    x = (sin * rows + cos * columns) * jnp.exp(log_w)
    y = y + (height - 1) / 2 + height * down
    x = x + tangent * (y - (height - 1) / 2) + (width - 1) / 2 + width * right
    sample = jax.vmap(
      lambda plane: jax.scipy.ndimage.map_coordinates(
        plane, [y, x], order=1, mode="nearest"
      ),
      in_axes=-1,
      out_axes=-1,
    )
    return sample(image)

  return jax.vmap(warp)(images, amounts)


def mix(
  key: PRNGKeyArray,
  images: Images,
  targets: SoftTargets,
  mixup: float = 0.0,
  cutmix: float = 0.0,
) -> tuple[Images, SoftTargets]:
  """Mixes each image and its target with those of its neighbor.

  Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) blends the images.
  Cutmix (Yun et al. 2019, https://arxiv.org/abs/1905.04899) pastes a box of one
  into the other, and mixes the targets by its area. As in their authors' code,
  the weight is drawn once a batch.

  The order of a batch is random already. A partner from anywhere in it would
  have to come from another device; a neighbor does not, as long as a device has
  an even number of examples.

  Args:
    key: random key.
    images: [b, h, w, c], an even number of them.
    targets: [b, n].
    mixup: alpha of Beta(alpha, alpha), from which the weight is drawn; 0 for no
      mixup.
    cutmix: alpha of Beta(alpha, alpha), from which the area is drawn; 0 for no
      cutmix. With both above 0, one of them is done, with equal chance.
  """
  if mixup and cutmix:
    which_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    cut = jax.random.bernoulli(which_key)
    # To draw both costs less than a branch.
    of_pixel, of_target = jax.tree.map(
      lambda one, other: jnp.where(cut, one, other),
      _cutmix_weights(cutmix_key, images, cutmix),
      _mixup_weights(mixup_key, images, mixup),
    )
  elif cutmix:
    of_pixel, of_target = _cutmix_weights(key, images, cutmix)
  else:
    of_pixel, of_target = _mixup_weights(key, images, mixup)
  of_pixel = of_pixel[:, :, None]
  return (
    images * (1 - of_pixel)[None] + _neighbors(images) * of_pixel[None],
    targets * (1 - of_target) + _neighbors(targets) * of_target,
  )


def _mixup_weights(key: PRNGKeyArray, images: Images, alpha: float) -> Weights:
  weight = jax.random.beta(key, alpha, alpha, dtype=images.dtype)
  return jnp.broadcast_to(weight, images.shape[1:3]), weight


def _cutmix_weights(key: PRNGKeyArray, images: Images, alpha: float) -> Weights:
  """Returns 1 in a box and 0 outside, and the share of the box.

  The box has the shape of the image and lies about a pixel anywhere in it; what
  is outside of the image is cut off.
  """
  height, width = images.shape[1:3]
  area_key, row_key, column_key = jax.random.split(key, 3)
  side = jnp.sqrt(jax.random.beta(area_key, alpha, alpha))
  rows = _centered_span(row_key, height, side)
  columns = _centered_span(column_key, width, side)
  area = rows.sum() * columns.sum()
  box = (rows[:, None] & columns[None]).astype(images.dtype)
  return box, (area / (height * width)).astype(images.dtype)


def _centered_span(
  key: PRNGKeyArray, length: int, share: Float[Array, ""]
) -> Bool[Array, " length"]:
  """Marks this share of a side, about a random pixel of it."""
  center = jax.random.randint(key, (), 0, length)
  half = (length * share).astype(int) // 2
  pixels = jnp.arange(length)
  return (center - half <= pixels) & (pixels < center + half)


def _neighbors(x: Array) -> Array:
  """Returns, for each example, its neighbor: 1 for 0, 0 for 1, 3 for 2, ..."""
  pairs = x.reshape(len(x) // 2, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def random_erase(
  key: PRNGKeyArray,
  images: Images,
  probability: float,
  scale: tuple[float, float] = (0.02, 0.33),
  ratio: tuple[float, float] = (0.3, 3.3),
) -> Images:
  """Sets a random box of some images to 0, the mean color.

  Random erasing (Zhong et al. 2017, https://arxiv.org/abs/1708.04896), drawn as
  torchvision does: of ten boxes, the first that is smaller than the image.

  Args:
    key: random key.
    images: [b, h, w, c], normalized.
    probability: probability of each image to be erased.
    scale: range of the box's share of the area, drawn uniformly.
    ratio: range of its height over its width, drawn log-uniformly.
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
  tries = (number, ERASING_ATTEMPTS)
  area = jax.random.uniform(area_key, tries, float, *scale) * height * width
  log_ratio = map(math.log, ratio)
  aspect = jnp.exp(jax.random.uniform(ratio_key, tries, float, *log_ratio))
  h = jnp.round(jnp.sqrt(area * aspect)).astype(int)
  w = jnp.round(jnp.sqrt(area / aspect)).astype(int)
  fits = (h < height) & (w < width)
  first = fits.argmax(1)[:, None]
  h, w = (jnp.take_along_axis(each, first, 1) for each in (h, w))
  return h, w, fits.any(1)


def _random_span(
  key: PRNGKeyArray, length: int, size: Int[Array, "b 1"]
) -> Bool[Array, "b length"]:
  """Marks `size` pixels of a side, anywhere."""
  start = jax.random.randint(key, size.shape, 0, length - size + 1)
  pixels = jnp.arange(length)
  return (start <= pixels[None]) & (pixels[None] < start + size)
