"""The picture of a run: loss, accuracy and learning rate by step."""

from collections.abc import Sequence
import pathlib
from typing import Any

TRAIN, VAL, BEST = "#7f8ea3", "#c8442c", "#1d2733"


def draw(
  rows: Sequence[dict[str, Any]], title: str, path: pathlib.Path
) -> None:
  """Draws the rows of a metrics.jsonl as PNG.

  Args:
    rows: At least one.
    title: What was trained on what.
    path: Of the picture.
  """
  # matplotlib is slow to import, and only the end of a run draws.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  loss, top1, rate = figure.subplots(1, 3)
  figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
  _plot(loss, rows, "train/loss", 1, TRAIN, "training")
  _plot(loss, rows, "val/loss", 1, VAL, "evaluation")
  loss.set(title="Cross-entropy loss", yscale="log")
  _plot(top1, rows, "train/top1", 100, TRAIN, "training, augmented")
  _plot(top1, rows, "val/top1", 100, VAL, "evaluation")
  top1.set(title="Top-1 accuracy (%)")
  _zoom(top1, rows)
  _plot(rate, rows, "learning_rate", 1, BEST, None)
  rate.set(title="Learning rate", ylim=(0, None))
  for axes in (loss, top1, rate):
    axes.set_xlabel("step")
    axes.set_xlim(0, rows[-1]["step"])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=8)
  loss.legend(frameon=False, fontsize=8)
  partial = path.with_suffix(".partial.png")
  figure.savefig(partial)
  partial.replace(path)


def _plot(axes, rows, key, scale, colour, label) -> None:
  points = [(row["step"], row[key] * scale) for row in rows if key in row]
  if points:
    marker = "o" if len(points) < 40 and key.startswith("val") else None
    axes.plot(
      *zip(*points, strict=True),
      color=colour,
      linewidth=1.4,
      marker=marker,
      markersize=3,
      label=label,
    )


def _zoom(axes, rows) -> None:
  """Leaves the first steps out of sight, and names the last evaluation."""
  evaluated = [row for row in rows if "val/top1" in row]
  if not evaluated:
    return
  last = evaluated[-1]
  accuracy = 100 * last["val/top1"]
  lowest = min(
    [100 * row["val/top1"] for row in evaluated[len(evaluated) // 4 :]]
    + [100 * row["train/top1"] for row in rows[len(rows) // 4 :] if "train/top1" in row]
  )
  axes.set_ylim(max(0, lowest - 3), min(100.5, accuracy + (accuracy - lowest) * 0.15 + 1))
  axes.annotate(
    f"{accuracy:.2f}",
    (last["step"], accuracy),
    xytext=(-4, 6),
    textcoords="offset points",
    ha="right",
    fontsize=9,
    fontweight="bold",
    color=VAL,
  )
