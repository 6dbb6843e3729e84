"""From image files to class probabilities."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
from typing import cast

import jax
from jaxtyping import Array, Float, UInt8
import numpy as np

from flax_resnet.augment import normalize
from flax_resnet.data import crops
from flax_resnet.data.decoding import ENDINGS, MAX_PIXELS
from flax_resnet.data.folder import read_file, warn_of_others
from flax_resnet.data.scan import images_below, is_image
from flax_resnet.errors import ImageError
from flax_resnet.models import ResNet
from flax_resnet.models.variables import Variables
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from flax_resnet.weights.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A trained network with the preprocessing of its images.

  Attributes:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of the network.
    preprocessing: preprocessing of the images.
    class_names: names of the classes by label.
    max_pixels: largest number of pixels of an image; default
      `decoding.MAX_PIXELS`.
    multi_label: whether an image may have several of the classes, so that each
      has a probability of its own; default False: they sum to 1.
  """

  model: ResNet
  variables: Variables
  preprocessing: Preprocessing
  class_names: Sequence[str]
  max_pixels: int = MAX_PIXELS
  multi_label: bool = False

  @property
  def channels(self) -> int:
    """Number of channels of the images."""
    return len(self.preprocessing.mean)

  @classmethod
  def of(cls, loaded: Pretrained) -> "Predictor":
    """Returns a predictor from weights.

    Weights that do not say what they expect get ImageNet's preprocessing, and
    their classes are called by their numbers.

    Raises:
      ValueError: if the network has no head, or does not take the channels
        that the preprocessing gives.
    """
    preprocessing = loaded.preprocessing or IMAGENET
    classes = loaded.model.num_classes
    if not classes:
      raise ValueError("the network has no head: there are no classes")
    if len(preprocessing.mean) != loaded.channels:
      raise ValueError(
        f"the weights want images of {loaded.channels} channels, and their "
        f"preprocessing gives {len(preprocessing.mean)}"
      )
    names = loaded.class_names or tuple(map(str, range(classes)))
    return cls(
      loaded.model,
      loaded.variables,
      preprocessing,
      names,
      multi_label=loaded.multi_label,
    )

  def read(self, path: str | os.PathLike) -> UInt8[np.ndarray, "h w c"]:
    """Returns the pixels of a file that the network sees.

    Raises:
      ImageError: if it is not an image, or cannot be read.
    """
    transform = crops.center_crop(
      self.channels,
      self.preprocessing.image_size,
      self.preprocessing.center_crop_fraction,
      self.preprocessing.interpolation,
      self.max_pixels,
      resize_first=self.preprocessing.resize_first,
    )
    try:
      # Evaluation draws no random numbers.
      image = read_file(path, self.max_pixels)
      return transform(image, np.random.default_rng(0))
    except ValueError as error:
      raise ImageError(f"{path}: {error}") from error

  def logits(
    self, variables: Variables, images: UInt8[Array, "b h w c"]
  ) -> Float[Array, "b n"]:
    """Returns the logits of pixels as `read` gives them; to be jitted."""
    mean, std = self.preprocessing.mean, self.preprocessing.std
    scaled = normalize(images, mean, std)
    return cast(Array, self.model.apply(variables, scaled, train=False))

  def probabilities(self, logits: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Returns the probabilities of the classes; to be jitted."""
    return (jax.nn.sigmoid if self.multi_label else jax.nn.softmax)(logits)

  def predict(
    self, paths: Iterable[str | os.PathLike], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, " n"]]:
    """Yields the probabilities of the classes for each file, in order.

    Args:
      paths: paths of image files, see `find_images`.
      batch_size: number of files that go through the network together.

    Raises:
      ImageError: at a file that is not an image, or cannot be read.
    """
    for found in self.predict_each(paths, batch_size):
      if isinstance(found, ImageError):
        raise found
      yield found

  def predict_each(
    self, paths: Iterable[str | os.PathLike], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, " n"] | ImageError]:
    """Yields what `predict` does, and the error of a file in its place."""
    for pixels, errors in self.read_batches(paths, batch_size):
      probabilities = np.asarray(self._probabilities(self.variables, pixels))
      for row, error in enumerate(errors):
        yield probabilities[row] if error is None else error

  def read_batches(
    self, paths: Iterable[str | os.PathLike], batch_size: int = 32
  ) -> Iterator[tuple[UInt8[np.ndarray, "b h w c"], list[ImageError | None]]]:
    """Yields the pixels of files as `read` gives them, and their errors.

    Args:
      paths: paths of image files, see `find_images`.
      batch_size: number of images of each batch. The last one is filled up with
        black images, so that all have one shape.

    Yields:
      A batch, and for each of its files the error, or None.
    """

    def read(
      path: str | os.PathLike,
    ) -> UInt8[np.ndarray, "h w c"] | ImageError:
      try:
        return self.read(path)
      except ImageError as error:
        return error

    shape = (batch_size, *self.preprocessing.shape, self.channels)
    paths = iter(paths)
    with futures.ThreadPoolExecutor() as pool:
      while batch := list(itertools.islice(paths, batch_size)):
        # One shape, one compilation.
        pixels = np.zeros(shape, np.uint8)
        errors: list[ImageError | None] = [None] * len(batch)
        for row, image in enumerate(pool.map(read, batch)):
          if isinstance(image, ImageError):
            errors[row] = image
          else:
            pixels[row] = image
        yield pixels, errors

  @functools.cached_property
  def _probabilities(self) -> jax.stages.Wrapped:
    return jax.jit(lambda *args: self.probabilities(self.logits(*args)))


def find_images(names: Sequence[str]) -> list[pathlib.Path]:
  """Returns the files that paths, folders and patterns name, in order.

  Args:
    names: files, which are taken whatever their ending; folders, for the images
      in them and below; patterns with *, ** or ?, for the images that they
      match. ** does not follow links to folders, which may lead in circles.

  Raises:
    ValueError: for a path that is not there, or holds no image.
  """
  return list(itertools.chain.from_iterable(map(_find, names)))


def _find(name: str) -> list[pathlib.Path]:
  path = pathlib.Path(os.path.expanduser(name))
  if path.is_file():
    return [path]
  others = collections.Counter()
  if path.is_dir():
    found = map(pathlib.Path, images_below(path, others))
  elif glob.has_magic(name):
    # To pathlib, a pattern that ends with ** is one of folders.
    pattern = path / "*" if path.name == "**" else path
    root = pathlib.Path(path.anchor)
    found = root.glob(str(pattern.relative_to(root)))
  else:
    raise ValueError(f"there is no image {name}")
  images = sorted(path for path in found if is_image(path.name))
  warn_of_others(name, others)
  if not images:
    raise ValueError(
      f"there is no image in {name}: looked for {', '.join(ENDINGS)}"
    )
  return images
