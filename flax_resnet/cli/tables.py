"""What `evaluate` prints of the scores of a network."""

from collections.abc import Iterator, Sequence
import math
from typing import Any

from etils import epy

with epy.lazy_imports():
  import numpy as np

  from flax_resnet.training import scores

# A matrix of more classes is wider than a terminal.
MOST_IN_MATRIX = 20
# Confusions that are printed of more classes.
MOST_CONFUSIONS = 20


def as_json(
  found: "scores.Scores", class_names: Sequence[str], top: int | None = None
) -> dict[str, Any]:
  """Returns all that is known, by the names of metrics.jsonl and others.

  Args:
    found: the scores.
    class_names: names of the classes by label.
    top: k of another top-k; None for none.
  """
  count = int(found.means["count"])
  accuracy = found.accuracy_by_class.tolist()
  confusion = found.confusion
  return {
    **{f"val/{key}": value for key, value in found.means.items()},
    "val/top1_interval": list(wilson_interval(found.means["top1"], count)),
    **({} if top is None else {f"val/top{top}": found.top(top)}),
    "val/calibration_error": found.calibration.error,
    "val/accuracy_by_class": dict(zip(class_names, accuracy, strict=True)),
    "val/confusion": None if confusion is None else confusion.tolist(),
    "val/calibration": {
      "count": found.calibration.counts.tolist(),
      "accuracy": found.calibration.accuracy.tolist(),
      "confidence": found.calibration.confidence.tolist(),
    },
    "images_per_second": found.images_per_second,
  }


def line(of: str, found: "scores.Scores", top: int | None = None) -> str:
  """Returns the line on one network, which begins with what it is `of`."""
  means = found.means
  low, high = wilson_interval(means["top1"], int(means["count"]))
  more = "" if top in (None, 1, 5) else f"top{top} {found.top(top):.2%}  "
  return (
    f"{of}: top1 {means['top1']:.2%} (error {1 - means['top1']:.2%}, "
    f"95% interval {low:.2%} to {high:.2%})  top5 {means['top5']:.2%}  {more}"
    f"loss {means['loss']:.4f}  on {means['count']:,} images"
  )


def head(width: int, top: int | None = None) -> str:
  """Returns the head of the table whose lines `row` returns.

  Args:
    width: width of the first column.
    top: k of another top-k; None for none.
  """
  more = "" if top in (None, 1, 5) else f"  {f'top{top}':>7}"
  return (
    f"{'network'.ljust(width)}  {'top1':>7}  {'95% interval':>18}  "
    f"{'top5':>7}{more}  {'loss':>7}  {'ECE':>6}  {'images':>9}  images/s"
  )


def row(name: str, found: "scores.Scores", top: int | None = None) -> str:
  """Returns the line of a table on a network."""
  means = found.means
  low, high = wilson_interval(means["top1"], int(means["count"]))
  interval = f"{low:.2%} to {high:.2%}"
  more = "" if top in (None, 1, 5) else f"  {found.top(top):7.2%}"
  return (
    f"{name}  {means['top1']:7.2%}  {interval:>18}  "
    f"{means['top5']:7.2%}{more}  "
    f"{means['loss']:7.4f}  {found.calibration.error:6.2%}  "
    f"{means['count']:9,}  {found.images_per_second:8,.0f}"
  )


def details(found: "scores.Scores", class_names: Sequence[str]) -> str:
  """Returns tables of the accuracy by class, confusions and calibration."""
  return "\n".join(
    [
      *_by_class(found, class_names),
      *_confusions(found, class_names),
      *_calibration(found),
    ]
  )


def _by_class(
  found: "scores.Scores", class_names: Sequence[str]
) -> Iterator[str]:
  width = max(len("class"), *map(len, class_names))
  yield f"\n{'class'.ljust(width)}  {'images':>7}  accuracy  95% interval"
  for name, accuracy, count in zip(
    class_names, found.accuracy_by_class, found.class_counts, strict=True
  ):
    if not count:
      yield f"{name.ljust(width)}  {0:7}         -"
      continue
    low, high = wilson_interval(float(accuracy), int(count))
    yield (
      f"{name.ljust(width)}  {count:7,}  {accuracy:8.2%}  "
      f"{low:.2%} to {high:.2%}"
    )


def _confusions(
  found: "scores.Scores", class_names: Sequence[str]
) -> Iterator[str]:
  if (counts := found.confusion) is None:
    return
  if len(class_names) <= MOST_IN_MATRIX:
    labels = max(map(len, class_names))
    width = max(len(str(counts.max())), min(labels, 6))
    yield "\nclass (rows) and prediction (columns)"
    names = [name[:width].rjust(width) for name in class_names]
    yield "  ".join([" " * labels, *names])
    for name, values in zip(class_names, counts, strict=True):
      cells = [f"{value or '.':>{width}}" for value in values]
      yield "  ".join([name.ljust(labels), *cells])
    return
  errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
  most = np.argsort(-errors, axis=None, kind="stable")[:MOST_CONFUSIONS]
  yield "\nimages  class taken for another"
  for label, predicted in zip(
    *np.unravel_index(most, errors.shape), strict=True
  ):
    if errors[label, predicted]:
      yield (
        f"{errors[label, predicted]:6,}  {class_names[label]} taken for "
        f"{class_names[predicted]}"
      )


def _calibration(found: "scores.Scores") -> Iterator[str]:
  bins = found.calibration
  yield (
    f"\nexpected calibration error {bins.error:.2%}; confidence less accuracy "
    f"{bins.overconfidence:+.2%}"
  )
  yield f"{'confidence':>15}  {'images':>7}  {'mean':>7}  accuracy"
  for number, (count, confidence, accuracy) in enumerate(
    zip(bins.counts, bins.confidence, bins.accuracy, strict=True)
  ):
    if count:
      low, high = (x / len(bins.counts) for x in (number, number + 1))
      edges = f"{low:.1%} to {high:.1%}"
      yield f"{edges:>15}  {count:7,}  {confidence:7.2%}  {accuracy:8.2%}"


def wilson_interval(
  share: float, count: int, z: float = 1.96
) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a share (Wilson 1927).

  Args:
    share: share of examples, in [0, 1].
    count: number of examples.
    z: quantile of the normal distribution; default 1.96.
  """
  center = share + z**2 / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
  scale = 1 + z**2 / count
  return (center - half) / scale, (center + half) / scale
