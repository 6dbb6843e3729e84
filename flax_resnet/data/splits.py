"""Parts of a set, in TFDS's notation: "train", "train[:80%]+train[90%:]"."""

from collections.abc import Sequence

import numpy as np


def part(split: str, sizes: dict[str, int]) -> tuple[str, np.ndarray]:
  """Returns which split is meant, and which of its records.

  Args:
    split: In the notation of https://www.tensorflow.org/datasets/splits.
    sizes: Of the splits that there are.

  Raises:
    ValueError: When there is no such part, or nothing in it.
  """
  from tensorflow_datasets import core  # Slow to import.

  infos = core.SplitDict(
    [
      core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
      for name, size in sizes.items()
    ]
  )
  try:
    pieces = core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, AssertionError, NotImplementedError) as error:
    raise _no_split(split, sizes) from error
  names = {piece.splitname for piece in pieces}
  indices = [
    i
    for piece in pieces
    for i in range(sizes[piece.splitname])[piece.from_ : piece.to]
  ]
  if len(names) > 1 or not indices:
    raise _no_split(split, sizes)
  return names.pop(), np.asarray(indices)


def mixed_order(labels: Sequence[int], seed: int) -> np.ndarray:
  """Returns an order of records in which every stretch has all classes alike.

  Each class is shuffled, and its records are spread evenly over the whole: so
  the first 80 % hold 80 % of each class, to one record.

  Args:
    labels: Of the records.
    seed: Of the shuffles.
  """
  classes = np.asarray(labels)
  rng = np.random.default_rng(seed)
  places = np.empty(len(classes))
  for label in np.unique(classes):
    (members,) = np.nonzero(classes == label)
    spread = (np.arange(len(members)) + 0.5) / len(members)
    places[rng.permutation(members)] = spread
  return np.argsort(places, kind="stable")


def _no_split(split: str, sizes: dict[str, int]) -> ValueError:
  return ValueError(
    f"there is no split {split!r}: use one of {', '.join(sizes)}, or a part of "
    "one that is not empty, such as 'train[:90%]'"
  )
