"""The pictures of `inspect`, as PNG and SVG."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

import numpy as np

from flax_resnet.insight.canvas import canvas, line
from flax_resnet.insight.mistakes import Mistakes
from flax_resnet.insight.probe import Probe

# Of one series each: a skip, no skip; dashed without BatchNorm, or before.
SKIP, PLAIN, ONLY_SKIPS, BEFORE = "#c8442c", "#2b3a4a", "#e0a458", "#8a97a8"

Series = tuple[str, Probe, dict[str, Any]]  # Label, what was measured, style.


def gradients(
  panels: Mapping[str, Sequence[Series]], title: str, path: pathlib.Path
) -> None:
  """Draws the norm of the gradient at each block, from stem to loss.

  Args:
    panels: Title of a panel to its series.
    title: Of the picture.
    path: Without ending.
  """
  with canvas(title, path, (1, len(panels)), sharey=True) as all_axes:
    for axes, (name, series) in zip(all_axes, panels.items(), strict=True):
      axes.set(title=name, yscale="log", xlabel="block (0: the stem)")
      for label, found, style in series:
        norms = [found.stem_gradient, *(b.gradient for b in found.blocks)]
        line(axes, range(len(norms)), norms, label=label, **style)
      axes.legend(frameon=False, fontsize=8)
    all_axes[0].set_ylabel("norm of the gradient of the loss")


def gradients_of_run(
  before: Probe, after: Probe, title: str, path: pathlib.Path
) -> None:
  """Draws the gradients before and after training, with those of the skips."""
  with canvas(title, path, (1, 2), sharey=True) as all_axes:
    for axes, name, found in zip(
      all_axes,
      ("before training", "after training"),
      (before, after),
      strict=True,
    ):
      axes.set(title=name, yscale="log", xlabel="block")
      numbers = range(1, len(found.blocks) + 1)
      whole = [b.gradient for b in found.blocks]
      line(axes, numbers, whole, label="whole", color=SKIP)
      if found.blocks[0].gradient_by_skips is not None:
        line(
          axes,
          numbers,
          [b.gradient_by_skips for b in found.blocks],
          label="back through the skips alone",
          color=ONLY_SKIPS,
        )
      axes.legend(frameon=False, fontsize=8)
    all_axes[0].set_ylabel("norm of the gradient of the loss")


def residuals(series: Sequence[Series], title: str, path: pathlib.Path) -> None:
  """Draws how large F(x) is beside x, and how like x the output is."""
  with canvas(title, path, (1, 2)) as (ratio, cosine):
    for label, found, style in series:
      numbers = range(1, len(found.blocks) + 1)
      style = {"label": label, "marker": "o", "markersize": 3, **style}
      line(ratio, numbers, [b.residual for b in found.blocks], **style)
      line(cosine, numbers, [b.cosine for b in found.blocks], **style)
    ratio.axhline(1, color="black", linewidth=0.6, linestyle=":")
    ratio.set(title="norm of F(x) over norm of x", xlabel="block")
    ratio.set_ylim(0, None)
    cosine.set(title="cosine between the block's output and x", xlabel="block")
    ratio.legend(frameon=False, fontsize=8)


def responses(series: Sequence[Series], title: str, path: pathlib.Path) -> None:
  """Draws the standard deviations of layer responses: Fig. 7 of the paper."""
  with canvas(title, path, (1, 2), sharey=True) as (by_place, by_size):
    for label, found, style in series:
      values = list(found.responses.values())
      numbers = range(1, len(values) + 1)
      line(by_place, numbers, values, label=label, **style)
      by_rank = np.sort(values)[::-1]
      line(by_size, numbers, by_rank, label=label, **style)
    by_place.set(title="in the order of the layers", xlabel="layer")
    by_size.set(title="sorted by size", xlabel="layer")
    by_place.set_ylabel("standard deviation")
    by_place.set_ylim(0, None)
    by_place.legend(frameon=False, fontsize=8)


def confusion(
  found: Mistakes, names: Sequence[str], title: str, path: pathlib.Path
) -> None:
  """Draws which classes are taken for which, and the accuracy of each."""
  counts = found.confusion.sum(1, keepdims=True)
  shares = found.confusion / np.maximum(counts, 1)
  with canvas(title, path, (1, 2), width_ratios=(3, 2)) as (matrix, bars):
    places = range(len(names))
    off = np.where(np.eye(len(names), dtype=bool), np.nan, shares)
    # One error of a few examples shall not look like many.
    most = max(0.1, float(np.nanmax(off)))
    image = matrix.imshow(off, cmap="Reds", vmin=0, vmax=most)
    if len(names) <= 20:
      for i in places:
        for j in places:
          if found.confusion[i, j]:
            dark = i != j and shares[i, j] > 0.6 * most
            matrix.text(
              j,
              i,
              found.confusion[i, j],
              ha="center",
              va="center",
              fontsize=6,
              color="white" if dark else "black",
            )
      slant = max(map(len, names)) > 2
      matrix.set_xticks(
        places,
        names,
        rotation=60 if slant else 0,
        ha="right" if slant else "center",
        fontsize=7,
      )
      matrix.set_yticks(places, names, fontsize=7)
      bars.set_yticks(places, names, fontsize=7)
    matrix.set(
      title="examples by class and prediction",
      xlabel="predicted",
      ylabel="class",
    )
    bar = matrix.figure.colorbar(image, ax=matrix, shrink=0.8)
    bar.set_label("share of the row", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    accuracy = 100 * found.accuracy_by_class
    bars.plot(accuracy, places, "o", color=SKIP, clip_on=False)
    bars.grid(axis="x", alpha=0.25, linewidth=0.6)
    bars.invert_yaxis()
    lowest = np.nanmin(accuracy)
    bars.set_xlim(max(0, 100 - 1.3 * (100 - lowest) - 1), 100.5)
    bars.set(title="accuracy by class (%)")


def mistakes(
  found: Mistakes, names: Sequence[str], title: str, path: pathlib.Path
) -> None:
  """Draws the most confident mistakes."""
  shown = found.most_confident[:20]
  columns = min(5, max(1, len(shown)))
  rows = max(1, math.ceil(len(shown) / columns))
  with canvas(title, path, (rows, columns), height=1.9 * rows + 0.5) as places:
    for axes in places:
      axes.axis("off")
    for axes, mistake in zip(places, shown, strict=False):
      sure = mistake.probability
      share = f"{sure:.0%}" if math.isfinite(sure) else "not finite"
      axes.imshow(mistake.image.squeeze(), cmap="gray")
      axes.set_title(
        f"{names[mistake.label]} taken for\n{names[mistake.predicted]} "
        f"({share})",
        fontsize=7,
      )


def curves(
  runs: Mapping[str, Sequence[Mapping[str, Any]]],
  title: str,
  path: pathlib.Path,
) -> None:
  """Draws errors by step of several runs: Fig. 6 of the paper.

  Args:
    runs: Name to the rows of its metrics.jsonl.
    title: Of the picture.
    path: Without ending.
  """
  styles = colours(list(runs))
  with canvas(title, path, (1, 2), sharey=True) as (training, evaluation):
    for name, rows in runs.items():
      for axes, key in ((training, "train/top1"), (evaluation, "val/top1")):
        points = [(r["step"], 100 - 100 * r[key]) for r in rows if key in r]
        axes.plot(
          *zip(*points, strict=True),
          label=name,
          marker="o" if len(points) < 20 else None,
          markersize=3,
          **styles[name],
        )
    training.set(title="training, augmented", ylabel="error (%)", xlabel="step")
    evaluation.set(title="evaluation", xlabel="step")
    evaluation.legend(frameon=False, fontsize=8)


def colours(names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns a style for each of several runs."""
  from matplotlib import colormaps

  tab10 = colormaps["tab10"]
  return {name: {"color": tab10(n % 10)} for n, name in enumerate(names)}
