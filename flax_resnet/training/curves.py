"""The picture of a run: loss, accuracy and learning rate by step."""

from collections.abc import Iterable, Sequence
import math
import pathlib
from typing import Any

TRAIN, EVAL, RATE = "#8a97a8", "#c8442c", "#2b3a4a"

Rows = Sequence[dict[str, Any]]


def draw(rows: Rows, title: str, path: pathlib.Path) -> None:
  """Draws the rows of a metrics.jsonl as PNG.

  Args:
    rows: At least one.
    title: What was trained on what.
    path: Of the picture; it is replaced once the new one is whole.
  """
  # matplotlib is slow to import, and only the end of a run draws.
  from matplotlib import ticker
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 3.7), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  loss, top1, rate = figure.subplots(1, 3, width_ratios=(4, 4, 3))
  figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
  _loss(loss, rows)
  _top1(top1, rows)
  _plot(rate, rows, "learning_rate", 1, RATE, None)
  rate.set(title="learning rate", ylim=(0, None))
  for axes in (loss, top1, rate):
    axes.set_xlabel("step", fontsize=9)
    axes.set_xlim(0, rows[-1]["step"] * 1.02)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.tick_params(which="both", labelsize=8)
  partial = path.with_suffix(".partial.png")
  figure.savefig(partial)
  partial.replace(path)


def noted(label: str, values: Iterable[float], log: bool = False) -> str:
  """Returns a label that says what of a curve cannot be drawn.

  Args:
    label: Of the curve.
    values: Of the curve.
    log: Whether they are drawn on a logarithmic axis, which has no zero.
  """
  values = list(values)
  missing = {"not finite": sum(not math.isfinite(v) for v in values)}
  if log:
    missing["zero"] = values.count(0)
  notes = [
    what if count == len(values) else f"{count} of {len(values)} {what}"
    for what, count in missing.items()
    if count
  ]
  return f"{label} ({', '.join(notes)})" if notes else label


def _loss(axes, rows: Rows) -> None:
  from matplotlib import ticker

  _plot(axes, rows, "train/loss", 1, TRAIN, "training, as optimised")
  _plot(axes, rows, "val/loss", 1, EVAL, "evaluation")
  axes.set(title="cross-entropy loss", yscale="log")
  low, high = axes.get_ylim()
  if high < 1e4 * low:  # More decades have ticks enough.
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  axes.legend(frameon=False, fontsize=8)


def _top1(axes, rows: Rows) -> None:
  _plot(axes, rows, "train/top1", 100, TRAIN, "training, augmented")
  last = _plot(axes, rows, "val/top1", 100, EVAL, "evaluation")
  axes.set(title="top-1 accuracy (%)")
  legend = {"frameon": False, "fontsize": 8}
  if last is None:
    axes.legend(loc="lower right", **legend)
    return
  # The first quarter of a run would flatten the rest of it.
  later = [row for row in rows if row["step"] > rows[-1]["step"] / 4]
  lowest = 100 * min(
    row[key]
    for row in later
    for key in ("train/top1", "val/top1")
    if key in row
  )
  bottom, top = max(0.0, 100 - 1.6 * (100 - lowest)), 100.2
  axes.set_ylim(bottom, top)
  room_above = (top - last[1]) / (top - bottom)
  axes.legend(
    loc="upper right" if room_above > 0.6 else "lower right", **legend
  )
  axes.annotate(
    f"{last[1]:.2f}",
    last,
    xytext=(0, 7 if room_above > 0.12 else -16),
    textcoords="offset points",
    ha="right",
    fontsize=10,
    fontweight="bold",
    color=EVAL,
    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
  )


def _plot(
  axes, rows: Rows, key: str, scale: float, colour: str, label: str | None
) -> tuple[float, float] | None:
  """Draws one series and returns its last point."""
  points = [(row["step"], row[key] * scale) for row in rows if key in row]
  if not points:
    return None
  axes.plot(
    *zip(*points, strict=True),
    color=colour,
    linewidth=1.5,
    marker="o" if len(points) < (40 if colour == EVAL else 2) else None,
    markersize=3.5,
    label=label and noted(label, (value for _, value in points)),
  )
  return points[-1]
