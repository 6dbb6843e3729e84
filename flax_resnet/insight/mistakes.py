"""What a trained network gets wrong."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An example that was put into another class.

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
  """

  confusion: np.ndarray
  most_confident: list[Mistake]

  @property
  def accuracy_by_class(self) -> np.ndarray:
    """Float [n]: share of each class that was recognized; NaN without any."""
    counts = self.confusion.sum(1)
    right = np.diag(self.confusion)
    return np.divide(
      right, counts, where=counts > 0, out=np.full(len(counts), np.nan)
    )


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
    keep: number of mistakes that are kept; default 20.
  """
  confusion = np.zeros((num_classes, num_classes), np.int64)
  mistakes: list[Mistake] = []
  first_index = 0
  for batch in batches:
    labels, mask = batch["label"], batch["mask"]
    probabilities = np.asarray(jax.device_get(predict(batch["image"])))
    predicted = probabilities.argmax(-1)
    np.add.at(confusion, (labels[mask], predicted[mask]), 1)
    for row in np.flatnonzero(mask & (predicted != labels)):
      mistakes.append(
        Mistake(
          index=first_index + int(row),
          label=int(labels[row]),
          predicted=int(predicted[row]),
          probability=float(probabilities[row].max()),
          image=batch["image"][row],
        )
      )
    # NaN, of a network that diverged, would leave them in any order.
    mistakes.sort(key=lambda m: -np.nan_to_num(m.probability))
    mistakes = mistakes[:keep]
    # Not the real rows alone: a broken image that was skipped leaves a hole.
    first_index += len(mask)
  return Mistakes(confusion, mistakes)
