"""ImageNet's classes, and the other test sets for weights that know them.

`imagenet_classes.txt` has the WordNet IDs of the 1,000 classes of ILSVRC 2012
in the order of their labels, as TFDS and timm have them.
"""

from collections.abc import Iterable, Sequence
import functools
import json
import os
import pathlib
import re

import numpy as np

from flax_resnet.errors import InputError

NUM_CLASSES = 1000


@functools.cache
def classes() -> dict[str, int]:
  """Returns the labels of the 1,000 classes by their WordNet IDs."""
  path = pathlib.Path(__file__).with_name("imagenet_classes.txt")
  return {name: label for label, name in enumerate(path.read_text().split())}


def labels_of(class_names: Sequence[str]) -> np.ndarray | None:
  """Returns the labels that ImageNet's classes of these names have, int32 [n].

  A folder of ImageNet, of ImageNet-A, -R (200 classes each) or -Sketch is
  called by its WordNet ID (arXiv:1907.07174, 2006.16241, 1905.13549), of
  ImageNet-V2 by the label (arXiv:1902.10811): "0", "1", "10", ...

  Returns:
    None where a name is neither.
  """
  if all(re.fullmatch(r"\d{1,3}", name) for name in class_names):
    return np.asarray([int(name) for name in class_names], np.int32)
  try:
    return np.asarray([classes()[name] for name in class_names], np.int32)
  except KeyError:
    return None


def read_real_labels(
  path: str | os.PathLike, names: Iterable[str]
) -> list[frozenset[int]]:
  """Returns the labels that people have given to validation images.

  Beyer et al. 2020, https://arxiv.org/abs/2006.07159; an image may have several
  labels, or none.

  Args:
    path: real.json of https://github.com/google-research/reassessed-imagenet, a
      list of the labels of each validation image.
    names: names of the images, which end in ILSVRC2012_val_00000001.JPEG.

  Raises:
    InputError: for another file, and for an image of another name.
  """
  try:
    real = json.loads(pathlib.Path(path).expanduser().read_bytes())
    sets = [frozenset(map(int, labels)) for labels in real]
  except (OSError, RecursionError, TypeError, ValueError) as error:
    raise InputError(
      f"{path} is not real.json, a list of the labels of each image: {error}"
    ) from error
  found = []
  for name in names:
    match = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
    number = int(match[1]) - 1 if match else -1
    if not 0 <= number < len(sets):
      raise InputError(
        f"{name} is not one of the {len(sets):,} images that {path} has labels "
        "of: use ImageNet's validation images, ILSVRC2012_val_00000001.JPEG"
      )
    found.append(sets[number])
  return found


def real_top1(
  predicted: np.ndarray, real: Sequence[frozenset[int]]
) -> tuple[float, int]:
  """Returns the share of images whose prediction is one of their labels.

  Args:
    predicted: int [n], the most probable class of each image.
    real: labels of each image; those without any do not count.

  Returns:
    The share, NaN without any image, and the number of images that count.
  """
  pairs = zip(predicted.tolist(), real, strict=True)
  right = [label in labels for label, labels in pairs if labels]
  return (float(np.mean(right)) if right else np.nan), len(right)
