"""What a trained network gets wrong."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An example that was put into another class.

  Attributes:
    index: Of the record in the evaluated split.
    label: Its class.
    predicted: The class that the network gave it.
    probability: How sure it was.
    image: uint8 [h, w, c], as the network saw it.
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
    confusion: int [n, n]: examples of class i (row) that were put into class j.
    most_confident: Mistakes, the surest first.
  """

  confusion: np.ndarray
  most_confident: list[Mistake]

  @property
  def accuracy_by_class(self) -> np.ndarray:
    """Share of each class that was recognised; NaN of one without examples."""
    counts = self.confusion.sum(1)
    right = np.diag(self.confusion)
    return np.divide(
      right, counts, where=counts > 0, out=np.full(len(counts), np.nan)
    )


def find_mistakes(
  probabilities_of: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  num_classes: int,
  keep: int = 20,
) -> Mistakes:
  """Looks at every example once.

  Args:
    probabilities_of: From uint8 images [b, h, w, c] to probabilities [b, n].
    batches: See `pipeline.eval_batches`.
    num_classes: Of the network.
    keep: How many mistakes to keep.
  """
  confusion = np.zeros((num_classes, num_classes), np.int64)
  found: list[Mistake] = []
  first = 0
  for batch in batches:
    probabilities = np.asarray(jax.device_get(probabilities_of(batch["image"])))
    predicted = probabilities.argmax(-1)
    real = batch["mask"]
    np.add.at(confusion, (batch["label"][real], predicted[real]), 1)
    for row in np.flatnonzero(real & (predicted != batch["label"])):
      found.append(
        Mistake(
          index=first + int(row),
          label=int(batch["label"][row]),
          predicted=int(predicted[row]),
          probability=float(probabilities[row].max()),
          image=batch["image"][row],
        )
      )
    # NaN, of a network that diverged, would leave them in any order.
    found.sort(key=lambda m: -np.nan_to_num(m.probability))
    found = found[:keep]
    # The rows of the batch: a broken image that was skipped leaves a hole.
    first += len(real)
  return Mistakes(confusion, found)
