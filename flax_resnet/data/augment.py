"""Augmentation on the device, inside the step: step 5 of the way of a batch.

Random numbers are drawn for the global batch at once, so that they do not
depend on how the batch is laid out over devices.
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from flax_resnet.data import mixing
from flax_resnet.data.mixing import Labels, SoftTargets

Images = Float[Array, "b h w c"]
Normalize = Callable[[UInt8[Array, "b h w c"]], Images]
Augment = Callable[
  [PRNGKeyArray, UInt8[Array, "b h w c"], Labels],
  tuple[Images, Labels | SoftTargets],
]


def normalize(
  images: UInt8[Array, "b h w c"],
  mean: Sequence[float],
  std: Sequence[float],
  dtype: DTypeLike = jnp.float32,
) -> Images:
  """Scales uint8 to [0, 1], then to mean 0 and variance 1 by channel."""
  scaled = images.astype(dtype) / 255
  return (scaled - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)


def random_flip(key: PRNGKeyArray, images: Images) -> Images:
  """Mirrors each image left to right, or not."""
  flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images)


def random_crop(key: PRNGKeyArray, images: Images, padding: int) -> Images:
  """Pads each image with zeros (the mean colour) and crops it back at random.

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
  """Rotates, shears, scales and shifts each image about its centre.

  Each amount is drawn uniformly from [-x, x]; bilinear, edges repeated.

  Args:
    key: Random key.
    images: [b, h, w, c].
    rotation: In degrees.
    translation: As a share of the side, in each direction.
    scaling: As the logarithm of the factor, in each direction.
    shear: As the tangent of the angle.
  """
  height, width = images.shape[1:3]
  limits = jnp.asarray(
    [jnp.deg2rad(rotation), shear, scaling, scaling, translation, translation],
    images.dtype,
  )
  amounts = limits * jax.random.uniform(
    key, (len(images), 6), images.dtype, minval=-1, maxval=1
  )
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


def make_augment(
  *,
  mean: Sequence[float],
  std: Sequence[float],
  flip: bool,
  crop_padding: int,
  rotation: float,
  translation: float,
  scaling: float,
  shear: float,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  random_erasing: float = 0.0,
  channels: int,
  num_classes: int,
  batch_size: int,
  dtype: DTypeLike = jnp.float32,
) -> tuple[Augment, Normalize]:
  """Returns what is done to a batch in training, and to images in evaluation.

  The order is that of timm: images are mixed, and then erased.

  Args:
    mean: By channel, of images scaled to [0, 1].
    std: By channel, likewise.
    flip: Whether to mirror left to right, see `random_flip`.
    crop_padding: In pixels, see `random_crop`; 0 for none.
    rotation: See `random_affine`, also for the next three; all 0 for none.
    translation: See there.
    scaling: See there.
    shear: See there.
    mixup: Alpha, see `mixing.mixup`; 0 for none. With `cutmix` as well, each
      step does one of them.
    cutmix: Alpha, see `mixing.cutmix`; 0 for none.
    random_erasing: Probability, see `mixing.random_erasing`; 0 for none.
    channels: Of the images.
    num_classes: Of the targets; labels that are not mixed stay integers.
    batch_size: Of the global batch.
    dtype: Of the results.

  Raises:
    ValueError: For a number out of its range.
  """
  for name, numbers in (("mean", mean), ("std", std)):
    if len(numbers) != channels:
      raise ValueError(
        f"{name} has {len(numbers)} numbers and the images {channels} "
        "channels: give one number a channel"
      )
  if not all(0 < number < math.inf for number in std):
    raise ValueError(f"std is {tuple(std)}: use numbers above 0")
  affine = {
    "rotation": rotation,
    "translation": translation,
    "scaling": scaling,
    "shear": shear,
  }
  if not 0 <= crop_padding <= 512:
    raise ValueError(f"crop_padding is {crop_padding}: use 0 to 512")
  for name, number in affine.items():
    if not 0 <= number < math.inf:
      raise ValueError(f"{name} is {number}: use 0 or more")
  if not 0 <= random_erasing <= 1:
    raise ValueError(f"random_erasing is {random_erasing}: use 0 to 1")
  mix = mixing.make_mix(
    mixup_alpha=mixup,
    cutmix_alpha=cutmix,
    num_classes=num_classes,
    batch_size=batch_size,
  )

  def prepare(images):
    return normalize(images, mean, std, dtype)

  def augment(key, images, labels):
    flip_key, crop_key, affine_key = jax.random.split(key, 3)
    # Not the 1 of the step's dropout; 0, 1 and 2 are also those of the split.
    mix_key, erase_key = jax.random.split(jax.random.fold_in(key, 3))
    images = prepare(images)
    if any(affine.values()):
      images = random_affine(affine_key, images, **affine)
    if flip:
      images = random_flip(flip_key, images)
    if crop_padding:
      images = random_crop(crop_key, images, crop_padding)
    images, targets = mix(mix_key, images, labels)
    if random_erasing:
      images = mixing.random_erasing(erase_key, images, random_erasing)
    return images, targets

  return augment, prepare
