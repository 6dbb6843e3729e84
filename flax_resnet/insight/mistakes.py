"""What a trained network gets wrong, and what it is unsure of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from flax_resnet.training.scores import Calibration, NUM_BINS, shares


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An example that was put into another class, or hardly into its own.

  Attributes:
    index: index of the record in the evaluation split.
    label: class of the example.
    predicted: class that the network gave it.
    probability: probability that the network gave that class, in [0, 1].
    image: uint8 [h, w, c], the pixels that went into the network.
  """

  index: int
  label: int
  predicted: int
  probability: float
  image: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mistakes:
  """The errors of a network on a data set.

  Attributes:
    confusion: int [n, n], examples of class i (row) that were put into class j.
    most_confident: mistakes, the most probable first.
    least_confident: examples that were recognized, the least probable first.
    calibration: how sure the network was, and how often right.
  """

  confusion: np.ndarray
  most_confident: list[Mistake]
  least_confident: list[Mistake]
  calibration: Calibration

  @property
  def accuracy_by_class(self) -> np.ndarray:
    """Float [n]: share of each class that was recognized; NaN without any."""
    return shares(np.diag(self.confusion), self.confusion.sum(1))


def find_mistakes(
  predict: Callable[[np.ndarray], Any],
  batches: Iterable[Mapping[str, np.ndarray]],
  num_classes: int,
  keep: int = 20,
) -> Mistakes:
  """Returns what a network gets wrong on a split.

  Args:
    predict: function from uint8 images [b, h, w, c] to probabilities [b, n].
    batches: batches that hold every record once, see `data.Split.eval_batches`.
    num_classes: number of classes, n.
    keep: number of mistakes that are kept, and of examples that were hardly
      recognized; default 20.
  """
  confusion = np.zeros((num_classes, num_classes), np.int64)
  bins = Calibration(*np.zeros((3, NUM_BINS)))
  mistakes: list[Mistake] = []
  unsure: list[Mistake] = []
  first_index = 0
  for batch in batches:
    labels, mask = batch["label"], batch["mask"]
    probabilities = np.asarray(jax.device_get(predict(batch["image"])))
    predicted, largest = probabilities.argmax(-1), probabilities.max(-1)
    right = predicted == labels
    np.add.at(confusion, (labels[mask], predicted[mask]), 1)
    bins += _calibration(largest[mask], right[mask])
    # NaN, of a network that diverged, would leave them in any order.
    order = np.argsort(-np.nan_to_num(largest), kind="stable")
    wrong = [int(n) for n in order if mask[n] and not right[n]][:keep]
    hardly = [int(n) for n in order[::-1] if mask[n] and right[n]][:keep]
    found = (batch, predicted, largest, first_index)
    mistakes += _examples(wrong, *found)
    mistakes.sort(key=lambda m: -np.nan_to_num(m.probability))
    mistakes = mistakes[:keep]
    unsure += _examples(hardly, *found)
    unsure.sort(key=lambda m: np.nan_to_num(m.probability))
    unsure = unsure[:keep]
    # Not the real rows alone: a broken image that was skipped leaves a hole.
    first_index += len(mask)
  return Mistakes(confusion, mistakes, unsure, bins)


def _examples(
  rows: Sequence[int],
  batch: Mapping[str, np.ndarray],
  predicted: np.ndarray,
  largest: np.ndarray,
  first_index: int,
) -> list[Mistake]:
  """Returns examples of a batch whose first record has `first_index`."""
  return [
    Mistake(
      index=first_index + int(row),
      label=int(batch["label"][row]),
      predicted=int(predicted[row]),
      probability=float(largest[row]),
      image=batch["image"][row].copy(),  # A view would keep the whole batch.
    )
    for row in rows
  ]


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Calibration:
  """Returns the bins of examples, closed above, as `training.scores` has them.

  NaN is in the first.
  """
  numbers = np.ceil(np.nan_to_num(confidence) * NUM_BINS).astype(int) - 1
  numbers = numbers.clip(0, NUM_BINS - 1)
  return Calibration(
    *(
      np.bincount(numbers, weights, NUM_BINS)
      for weights in (None, right, confidence)
    )
  )
