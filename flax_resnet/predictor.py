"""From image files to class probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import fnmatch
import glob
import itertools
import os
import pathlib
from typing import Any, cast

import jax
from jaxtyping import Array, Float, UInt8
import numpy as np

from flax_resnet.data import transforms
from flax_resnet.data.augment import normalize
from flax_resnet.data.folder import ENDINGS, images_below, read_file
from flax_resnet.models import operations, ResNet
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from flax_resnet.weights.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A trained network with the way of an image into it.

  Attributes:
    model: The network.
    variables: Of it.
    preprocessing: What is done to an image.
    class_names: By label.
  """

  model: ResNet
  variables: Any
  preprocessing: Preprocessing
  class_names: Sequence[str]

  @property
  def channels(self) -> int:
    """Channels of the images."""
    return len(self.preprocessing.mean)

  @classmethod
  def of(cls, loaded: Pretrained) -> "Predictor":
    """Returns a predictor from weights.

    Weights that do not say what they expect get ImageNet's preprocessing, and
    their classes are called by their numbers.

    Raises:
      ValueError: When the network has no head, or does not take the channels
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
    return cls(loaded.model, loaded.variables, preprocessing, names)

  def read(self, path: str | os.PathLike) -> UInt8[np.ndarray, "h w c"]:
    """Returns the pixels of a file that the network sees.

    Raises:
      ValueError: When it is not an image, or cannot be read.
    """
    transform = transforms.center_crop(
      self.channels,
      self.preprocessing.image_size,
      self.preprocessing.crop_fraction,
      self.preprocessing.interpolation,
    )
    try:
      # Evaluation draws no random numbers.
      return transform(read_file(path), np.random.default_rng(0))
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from error

  def logits(
    self, variables: Any, images: UInt8[Array, "b h w c"]
  ) -> Float[Array, "b n"]:
    """Returns the logits of pixels as `read` gives them; to be jitted."""
    mean, std = self.preprocessing.mean, self.preprocessing.std
    scaled = normalize(images, mean, std)
    return cast(Array, self.model.apply(variables, scaled, train=False))

  def predict(
    self, paths: Iterable[str | os.PathLike], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, " n"]]:
    """Yields the probabilities of the classes for each file, in order.

    Args:
      paths: Of image files, see `find_images`.
      batch_size: Files that are looked at together.

    Raises:
      ValueError: At a file that is not an image, or cannot be read.
    """
    forward = jax.jit(
      lambda *a: jax.nn.softmax(self.logits(*a)),
      compiler_options=operations.compiler_options(jax.default_backend()),
    )
    paths = iter(paths)
    with futures.ThreadPoolExecutor() as pool:
      while batch := list(itertools.islice(paths, batch_size)):
        pixels = np.stack(list(pool.map(self.read, batch)))
        missing = batch_size - len(pixels)  # One shape, one compilation.
        filled = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
        found = np.asarray(forward(self.variables, filled))
        yield from found[: len(pixels)]


def find_images(what: Sequence[str]) -> list[pathlib.Path]:
  """Returns the files that paths, folders and globs stand for, in order.

  Args:
    what: A file as it is; a folder for the images in it and below; a pattern
      with *, ** or ? for what it matches.

  Raises:
    ValueError: For something that is not there, or holds no image.
  """
  return list(itertools.chain.from_iterable(map(_find, what)))


def _find(name: str) -> list[pathlib.Path]:
  path = pathlib.Path(os.path.expanduser(name))
  if path.is_file():
    return [path]
  if path.is_dir():
    inside = map(pathlib.Path, images_below(path))
  elif glob.has_magic(name):
    inside = _matched(path)
  else:
    raise ValueError(f"there is no image {name}")
  found = sorted(p for p in inside if p.suffix.lower() in ENDINGS)
  if not found:
    raise ValueError(
      f"there is no image in {name}: looked for {', '.join(ENDINGS)}"
    )
  return found


def _matched(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields what a pattern stands for; links in circles end, as in a folder."""
  parts = pattern.parts
  if "**" not in parts:
    yield from map(pathlib.Path, glob.iglob(str(pattern)))
    return
  at = parts.index("**")
  tail = parts[at + 1 :] or ("*",)
  for folder in glob.iglob(str(pathlib.Path(*parts[:at]))):
    for path in map(pathlib.Path, images_below(folder)):
      if _matches(path.relative_to(folder).parts, ("**", *tail)):
        yield path


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
  """Whether a path is what a pattern says; ** is any number of folders."""
  if not patterns:
    return not parts
  first, *rest = patterns
  if first == "**":
    return any(_matches(parts[n:], rest) for n in range(len(parts) + 1))
  return (
    bool(parts)
    and fnmatch.fnmatchcase(parts[0], first)
    and _matches(parts[1:], rest)
  )
