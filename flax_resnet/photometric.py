"""Random colors and blur of images on the device, for `augment`.

Images are floats in [0, 1], as before their normalization. The amounts are
drawn for each image; each operation on given amounts is torchvision's.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Images = Float[Array, "b h w c"]
Factors = Float[Array, " b"]

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it.


def jitter(
  key: PRNGKeyArray,
  images: Images,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> Images:
  """Changes the colors of each image at random, as torchvision's `ColorJitter`.

  The operations come in a random order, the same for a whole batch.

  Args:
    key: random key.
    images: [b, h, w, c] in [0, 1].
    brightness: factors are drawn from [max(0, 1 - x), 1 + x]; default 0.
    contrast: the same of `adjust_contrast`; default 0.
    saturation: the same of `adjust_saturation`; default 0.
    hue: shifts are drawn from [-x, x], in turns; default 0.
  """
  order_key, *keys = jax.random.split(key, 5)
  ranges = {
    adjust_brightness: (max(0.0, 1 - brightness), 1 + brightness),
    adjust_contrast: (max(0.0, 1 - contrast), 1 + contrast),
    adjust_saturation: (max(0.0, 1 - saturation), 1 + saturation),
    adjust_hue: (-hue, hue),
  }
  operations: list[Callable[[Images], Images]] = []
  for drawn, (operation, (low, high)) in zip(keys, ranges.items(), strict=True):
    if low < high:
      amounts = jax.random.uniform(
        drawn, (len(images),), images.dtype, low, high
      )
      operations.append(
        lambda x, operation=operation, amounts=amounts: operation(x, amounts)
      )
  order = jax.random.permutation(order_key, len(operations))
  for place in range(len(operations)):
    images = jax.lax.switch(order[place], operations, images)
  return images


def adjust_brightness(images: Images, factors: Factors) -> Images:
  """Returns images times their factors, clipped to [0, 1]."""
  return _blend(images, jnp.zeros((), images.dtype), factors)


def adjust_contrast(images: Images, factors: Factors) -> Images:
  """Moves each image away from the mean of its gray, by its factor."""
  mean = grayscale(images).mean((1, 2, 3), keepdims=True)
  return _blend(images, mean, factors)


def adjust_saturation(images: Images, factors: Factors) -> Images:
  """Moves each image away from its gray, by its factor; gray ones stay."""
  if images.shape[-1] == 1:
    return images
  return _blend(images, grayscale(images), factors)


def adjust_hue(images: Images, shifts: Factors) -> Images:
  """Turns the hue of each image by its shift, in turns; gray ones stay."""
  if images.shape[-1] == 1:
    return images
  value, low = images.max(-1), images.min(-1)
  chroma = value - low
  red, green, blue = jnp.moveaxis(images, -1, 0)
  divisor = jnp.where(chroma > 0, chroma, 1)
  sixths = jnp.where(
    value == red,
    (green - blue) / divisor,
    jnp.where(
      value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    ),
  )
  turned = sixths + 6 * shifts[:, None, None]
  # Each color is the value, less the chroma as far as the hue is from it.
  colors = []
  for start in (5, 3, 1):
    k = (start + turned) % 6
    far = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    colors.append(value - chroma * far)
  return jnp.stack(colors, -1)


def grayscale(images: Images) -> Float[Array, "b h w 1"]:
  """Returns the brightness of each pixel."""
  if images.shape[-1] == 1:
    return images
  weights = jnp.asarray(_GRAY, images.dtype)
  return (images * weights[None, None, None]).sum(-1, keepdims=True)


def _blend(images: Images, others: Array, factors: Factors) -> Images:
  factors = factors[:, None, None, None]
  if others.ndim:
    mixed = factors * images + (1 - factors) * others
  else:
    mixed = factors * images
  return jnp.clip(mixed, 0, 1)


def random_blur(
  key: PRNGKeyArray,
  images: Images,
  probability: float,
  sigma: tuple[float, float],
) -> Images:
  """Blurs some images by a Gaussian, as SimCLR does (Chen et al. 2020, A).

  Args:
    key: random key.
    images: [b, h, w, c] in [0, 1].
    probability: probability of each image to be blurred.
    sigma: range of the standard deviation in pixels, drawn uniformly; the
      kernel reaches three of the largest to each side.
  """
  chosen_key, sigma_key = jax.random.split(key)
  number, (low, high) = len(images), sigma
  chosen = jax.random.bernoulli(chosen_key, probability, (number, 1, 1, 1))
  sigmas = jax.random.uniform(sigma_key, (number,), images.dtype, low, high)
  blurred = gaussian_blur(images, sigmas, 2 * math.ceil(3 * high) + 1)
  return jnp.where(chosen, blurred, images)


def gaussian_blur(images: Images, sigmas: Factors, kernel_size: int) -> Images:
  """Blurs each image by a Gaussian; its edges are mirrored.

  Args:
    images: [b, h, w, c].
    sigmas: standard deviations in pixels.
    kernel_size: size of the kernel in pixels, odd.
  """
  half = kernel_size // 2
  offsets = jnp.arange(-half, half + 1, dtype=images.dtype)
  density = jnp.exp(-0.5 * jnp.square(offsets[None] / sigmas[:, None]))
  kernels = density / density.sum(1, keepdims=True)
  for axis in (1, 2):
    border = [(0, 0)] * 4
    border[axis] = (half, half)
    padded = jnp.pad(images, border, "reflect")
    # A sum of shifted images, which becomes one loop over pixels: the kernels
    # differ from image to image.
    images = sum(
      (
        kernels[:, n, None, None, None]
        * jax.lax.slice_in_dim(padded, n, n + images.shape[axis], axis=axis)
        for n in range(kernel_size)
      ),
      start=jnp.zeros_like(images),
    )
  return images
