"""Records whose batches tell where they come from."""

import numpy as np

from flax_resnet.data.pipeline import RecordReader


class Numbers:
  """Records whose image and label are their index."""

  channels = 1
  class_names = ("none",)

  def __init__(self, size):
    self.size = size

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    return {"image": np.full((1, 1, 1), index % 256, np.uint8), "label": index}

  def name(self, index):
    return f"number {index}"


def jitter(image, rng):
  """A transform whose random part can be read off the result."""
  return np.concatenate([image.ravel(), rng.integers(0, 256, 4)])


def numbers(size):
  """Returns a reader of `Numbers` as they are."""
  return RecordReader(Numbers(size), lambda image, rng: image, (1, 1, 1))


def jittered(size):
  """Returns a reader of `Numbers` with `jitter`."""
  return RecordReader(Numbers(size), jitter, (5,))
