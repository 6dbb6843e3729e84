"""Arrays in memory as a source, and a file of them."""

from collections.abc import Sequence
import operator
import os
from typing import SupportsIndex

import numpy as np

from flax_resnet.data import splits
from flax_resnet.data.sources import Record


class ArraySource:
  """Images and labels in memory.

  Args:
    images: uint8 [n, h, w, c], or [n, h, w] of grey ones.
    labels: int [n].
    class_names: By label.
    title: What the whole is called in messages.

  Raises:
    ValueError: When these do not fit together.
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str = "the arrays",
  ):
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.shape[3:] not in ((1,), (3,)):
      raise ValueError(
        f"{title} has images of {images.dtype} {list(images.shape)}: use uint8 "
        "[n, h, w, c] with 1 or 3 channels"
      )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
      raise ValueError(
        f"{title} has {len(images)} images and labels of {labels.dtype} "
        f"{list(labels.shape)}: use an integer for each image"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
      raise ValueError(
        f"{title} has labels {labels.min()} to {labels.max()} and "
        f"{len(class_names)} classes: count from 0"
      )
    self.images, self.labels = images, labels.astype(np.int32)
    self.channels = images.shape[-1]
    self.class_names = list(class_names)
    self._title = title

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = operator.index(index)
    return {"image": self.images[index], "label": int(self.labels[index])}

  def name(self, index: SupportsIndex) -> str:
    """Returns what a record is called in messages."""
    return f"image {operator.index(index)} of {self._title}"


def open_npz(path: str | os.PathLike, split: str) -> ArraySource:
  """Returns a part of the arrays in a NumPy file.

  Args:
    path: Of a .npz with SPLIT_images, uint8 [n, h, w, c], SPLIT_labels, int
      [n], of each split, and perhaps class_names, strings by label.
    split: In TFDS's notation.

  Raises:
    ValueError: When there is no such split, or it holds something else.
    FileNotFoundError: When there is no such file.
  """
  try:
    # Opened here, as NumPy leaves a file open that it cannot read.
    with (
      open(os.path.expanduser(path), "rb") as opened,
      np.load(opened, allow_pickle=False) as file,
    ):
      arrays = dict(file)
    for name, array in arrays.items():
      if not isinstance(array, np.ndarray):  # NumPy gives bytes as they are.
        raise ValueError(f"{name} is no array")
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"root is {path}, which is not there: give the path of a .npz file"
    ) from error
  except Exception as error:  # NumPy and zip raise whatever they meet.
    raise ValueError(
      f"{path} is not a NumPy file of plain arrays: {error}"
    ) from error
  sizes = {
    name.removesuffix("_images"): len(images)
    for name, images in arrays.items()
    if name.endswith("_images") and images.ndim
  }
  base, indices = splits.part(split, sizes)
  if (labels := arrays.get(f"{base}_labels")) is None:
    raise ValueError(f"{path} has {base}_images and no {base}_labels: add them")
  names = arrays.get("class_names")
  if names is None:
    # Of all splits: one may lack the last classes.
    known = [a for name, a in arrays.items() if name.endswith("_labels")]
    names = range(int(max(np.max(a, initial=0) for a in known)) + 1)
  whole = ArraySource(
    arrays[f"{base}_images"],
    labels,
    [str(name) for name in names],
    title=f"{base} in {path}",
  )
  return ArraySource(
    whole.images[indices], whole.labels[indices], whole.class_names
  )
