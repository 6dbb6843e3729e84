"""Every figure of the package: what a run logs, and what `inspect` measures.

Figures take plain values: rows of a metrics.jsonl, lists of numbers, arrays;
curves are values by label, and styles, also by label, keywords of matplotlib's
`plot`. Those of `inspect` are written as PNG and SVG to `path`, which has no
ending, and return these two files.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import pathlib
import textwrap
from typing import Any

from etils import epy
import numpy as np

from flax_resnet import fonts, storage

with epy.lazy_imports():  # Slow to import, and only the end of a run draws.
  import matplotlib
  from matplotlib import figure as figures
  from matplotlib import ticker

Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Sequence[float | None]]
Styles = Mapping[str, Mapping[str, Any]]

TRAIN, EVAL, RATE = "#8a97a8", "#c8442c", "#2b3a4a"
# Labels of x axes whose ticks are whole numbers.
WHOLE_NUMBERS = (
  *("block", "block (0: the stem)", "layer", "step"),
  "blocks on the path",
)
# A residual net, and what comes through its skips alone; a plain net; a network
# before training.
RESIDUAL, ONLY_SKIPS, PLAIN, BEFORE = "#c8442c", "#e0a458", "#2b3a4a", "#8a97a8"


def training_curves(rows: Rows, title: str, path: pathlib.Path) -> None:
  """Draws loss, accuracy and learning rate of a run by step.

  Args:
    rows: rows of its metrics.jsonl, at least one.
    title: network and data set.
    path: path of the PNG.
  """
  figure = new_figure(11, 3.7, title, fontsize=12)
  loss, top1, rate = figure.subplots(1, 3, width_ratios=(4, 4, 3))
  _draw_loss(loss, rows)
  _draw_top1(top1, rows)
  _plot_by_step(rate, rows, "learning_rate", 1, RATE, None)
  rate.set(title="learning rate", ylim=(0, None))
  for axes in (loss, top1, rate):
    axes.set_xlabel("step", fontsize=9)
    axes.set_xlim(0, rows[-1]["step"] * 1.02)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.title.set_fontsize(10)
    _finish(axes)
  fonts.set_families(figure)
  with storage.replacing(path) as partial:
    figure.savefig(partial)


def _draw_loss(axes: Any, rows: Rows) -> None:
  _plot_by_step(axes, rows, "train/loss", 1, TRAIN, "training, as optimised")
  _plot_by_step(axes, rows, "val/loss", 1, EVAL, "evaluation")
  axes.set(title="cross-entropy loss", yscale="log")
  _plain_log_ticks(axes)
  axes.legend(frameon=False, fontsize=8)


def _draw_top1(axes: Any, rows: Rows) -> None:
  score, title = "val/top1", "top-1 accuracy (%)"
  if any("val/map" in row for row in rows):  # Of several labels an image.
    score, title = "val/map", "mean average precision (%)"
  _plot_by_step(axes, rows, "train/top1", 100, TRAIN, "training, augmented")
  last = _plot_by_step(axes, rows, score, 100, EVAL, "evaluation")
  axes.set(title=title)
  legend = {"frameon": False, "fontsize": 8}
  if last is None:
    axes.legend(loc="lower right", **legend)
    return
  # The first quarter of a run would flatten the rest of it.
  later = [row for row in rows if row["step"] > rows[-1]["step"] / 4]
  lowest = 100 * min(
    row[key] for row in later for key in ("train/top1", score) if key in row
  )
  bottom, top = max(0.0, 100 - 1.6 * (100 - lowest)), 100.2
  axes.set_ylim(bottom, top)
  free_above = (top - last[1]) / (top - bottom)
  axes.legend(
    loc="upper right" if free_above > 0.6 else "lower right", **legend
  )
  axes.annotate(
    f"{last[1]:.2f}",
    last,
    xytext=(0, 7 if free_above > 0.12 else -16),
    textcoords="offset points",
    ha="right",
    fontsize=10,
    fontweight="bold",
    color=EVAL,
    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
  )


def _plot_by_step(
  axes: Any, rows: Rows, key: str, scale: float, color: str, label: str | None
) -> tuple[float, float] | None:
  """Draws a column of the rows and returns its last point."""
  points = [(row["step"], row[key] * scale) for row in rows if key in row]
  if not points:
    return None
  axes.plot(
    *zip(*points, strict=True),
    color=color,
    linewidth=1.5,
    marker="o" if len(points) < (40 if color == EVAL else 2) else None,
    markersize=3.5,
    label=label and label_with_gaps(label, [value for _, value in points]),
  )
  return points[-1]


def error_curves(
  runs: Mapping[str, Rows], styles: Styles, title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws the errors of runs, by name, by step: Fig. 6 of He et al. 2015."""
  both = training, evaluation = new_axes(title, 1, 2, sharey=True)
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
  return save(both, path)


def gradient_norms(
  panels: Mapping[str, Curves],
  styles: Styles,
  title: str,
  path: pathlib.Path,
  *,
  from_stem: bool,
) -> list[pathlib.Path]:
  """Draws the norm of the gradient of the loss at each block.

  Each panel, by its title, has its curves. With `from_stem`, the first value of
  a curve is that at the stem, and not that at the first block.
  """
  all_axes = new_axes(title, 1, len(panels), sharey=True)
  for axes, (name, curves) in zip(all_axes, panels.items(), strict=True):
    xlabel = "block (0: the stem)" if from_stem else "block"
    axes.set(title=name, yscale="log", xlabel=xlabel)
    plot_by_number(axes, curves, styles, first=0 if from_stem else 1)
    axes.legend(frameon=False, fontsize=8)
  all_axes[0].set_ylabel("norm of the gradient of the loss")
  return save(all_axes, path)


def residuals(
  ratios: Curves,
  cosines: Curves,
  styles: Styles,
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws norm(F(x)) / norm(x), and the cosine of output and x, at blocks."""
  both = ratio, cosine = new_axes(title, 1, 2)
  for axes, curves in ((ratio, ratios), (cosine, cosines)):
    plot_by_number(axes, curves, styles, marker="o", markersize=3)
  ratio.axhline(1, color="black", linewidth=0.6, linestyle=":")
  ratio.set(title="norm of F(x) over norm of x", xlabel="block")
  ratio.set_ylim(0, None)
  cosine.set(title="cosine between the block's output and x", xlabel="block")
  ratio.legend(frameon=False, fontsize=8)
  return save(both, path)


def layer_responses(
  deviations: Curves, styles: Styles, title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws standard deviations of layer responses: Fig. 7 of He et al. 2015."""
  both = in_order, by_size = new_axes(title, 1, 2, sharey=True)
  descending = {
    label: np.sort(np.asarray(values, float))[::-1].tolist()
    for label, values in deviations.items()
  }
  plot_by_number(in_order, deviations, styles)
  plot_by_number(by_size, descending, styles)
  in_order.set(title="in the order of the layers", xlabel="layer")
  by_size.set(title="sorted by size", xlabel="layer")
  in_order.set_ylabel("standard deviation")
  in_order.set_ylim(0, None)
  in_order.legend(frameon=False, fontsize=8)
  return save(both, path)


def confusion_matrix(
  counts: np.ndarray,
  accuracy_by_class: np.ndarray,
  class_names: Sequence[str],
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws which classes are taken for which, and the accuracy of each.

  Args:
    counts: int [n, n], examples of class i (row) that were put into class j.
    accuracy_by_class: float [n], in [0, 1]; NaN for a class without examples.
    class_names: names of the n classes.
    title: title of the picture.
    path: path of the picture.
  """
  both = matrix, bars = new_axes(title, 1, 2, width_ratios=(3, 2))
  _draw_matrix(matrix, counts)
  class_names = fonts.drawable_names(class_names)
  numbers = range(len(class_names))
  if len(class_names) <= 20:
    slanted = max(map(len, class_names)) > 2
    matrix.set_xticks(
      numbers,
      class_names,
      rotation=60 if slanted else 0,
      ha="right" if slanted else "center",
      fontsize=7,
    )
    matrix.set_yticks(numbers, class_names, fontsize=7)
    bars.set_yticks(numbers, class_names, fontsize=7)
  accuracy = 100 * accuracy_by_class
  bars.plot(accuracy, numbers, "o", color=RESIDUAL, clip_on=False)
  bars.grid(axis="x", alpha=0.25, linewidth=0.6)
  bars.invert_yaxis()
  bars.set_xlim(max(0, 100 - 1.3 * (100 - np.nanmin(accuracy)) - 1), 100.5)
  bars.set(title="accuracy by class (%)")
  return save(both, path)


def _draw_matrix(axes: Any, counts: np.ndarray) -> None:
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  errors = np.where(np.eye(len(counts), dtype=bool), np.nan, shares)
  # One error of a few examples shall not look like many.
  most = max(0.1, float(np.nanmax(errors)))
  image = axes.imshow(errors, cmap="Reds", vmin=0, vmax=most)
  for i, j in np.argwhere(counts) if len(counts) <= 20 else ():
    dark = i != j and shares[i, j] > 0.6 * most
    axes.text(
      j,
      i,
      counts[i, j],
      ha="center",
      va="center",
      fontsize=6,
      color="white" if dark else "black",
    )
  axes.set(
    title="examples by class and prediction",
    xlabel="predicted",
    ylabel="class",
  )
  bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
  bar.set_label("share of the row", fontsize=8)
  bar.ax.tick_params(labelsize=7)


def image_grid(
  images: Sequence[np.ndarray],
  captions: Sequence[str],
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws images, uint8 [h, w, c], five to a row, with a caption above each."""
  columns = min(5, max(1, len(images)))
  rows = max(1, math.ceil(len(images) / columns))
  all_axes = new_axes(title, rows, columns, height=1.9 * rows + 0.5)
  for axes in all_axes:
    axes.axis("off")
  for axes, image, caption in zip(all_axes, images, captions, strict=False):
    axes.imshow(image.squeeze(), cmap="gray")
    axes.set_title(caption, fontsize=7)
  return save(all_axes, path)


def run_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Returns a style for each of several runs by its name."""
  tab10 = matplotlib.colormaps["tab10"]
  return {name: {"color": tab10(n % 10)} for n, name in enumerate(names)}


def label_with_gaps(
  label: str, values: Sequence[float], log: bool = False
) -> str:
  """Returns the label of a curve, with how many of its values are not drawn.

  With `log`, the axis is logarithmic and has no zero.
  """
  missing = {"not finite": sum(not math.isfinite(v) for v in values)}
  if log:
    missing["zero"] = values.count(0)
  gaps = [
    kind if count == len(values) else f"{count} of {len(values)} {kind}"
    for kind, count in missing.items()
    if count
  ]
  return f"{label} ({', '.join(gaps)})" if gaps else label


def plot_by_number(
  axes: Any, curves: Curves, styles: Styles, *, first: int = 1, **style: Any
) -> None:
  """Draws curves over the numbers of blocks or layers, counted from `first`."""
  log = axes.get_yscale() == "log"
  for label, values in curves.items():
    values = [math.nan if value is None else value for value in values]
    numbers = range(first, first + len(values))
    text = label_with_gaps(label, values, log)
    axes.plot(numbers, values, label=text, **style, **styles[label])
    # The x axis shows all blocks, also those without a value.
    ends = [(numbers[0], 0), (numbers[-1], 0)]
    axes.update_datalim(ends, updatey=False)


def new_axes(
  title: str, rows: int, columns: int, height: float = 4.0, **options: Any
) -> list[Any]:
  """Returns the axes of a new picture."""
  width = 2.1 * columns if columns > 3 else max(4.0 * columns, 8)
  lines = [textwrap.fill(line, 95) for line in title.splitlines()]
  figure = new_figure(width, height, "\n".join(lines), fontsize=11)
  grid = figure.subplots(rows, columns, squeeze=False, **options)
  return list(grid.ravel())


def save(all_axes: Sequence[Any], path: pathlib.Path) -> list[pathlib.Path]:
  """Writes the picture of some axes and returns its files."""
  for axes in all_axes:
    if axes.get_yscale() == "log":
      _plain_log_ticks(axes)
    axes.title.set_fontsize(min(axes.title.get_fontsize(), 10))
    if axes.get_xlabel() in WHOLE_NUMBERS:
      axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
    _finish(axes)
  fonts.set_families(all_axes[0].figure)
  files = [path.with_name(path.name + ending) for ending in (".png", ".svg")]
  for file in files:
    with storage.replacing(file) as partial:
      all_axes[0].figure.savefig(partial)
  return files


def _plain_log_ticks(axes: Any) -> None:
  """Labels a logarithmic axis by plain numbers: formulas are not drawn."""
  low, high = axes.get_ylim()
  if high < 1e4 * low:  # More decades have ticks enough.
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def new_figure(width: float, height: float, title: str, fontsize: float) -> Any:
  size = (width, height)
  figure = figures.Figure(figsize=size, dpi=150, layout="constrained")
  bold = {"fontsize": fontsize, "fontweight": "bold"}
  figure.suptitle(title, x=0.01, ha="left", **bold)
  return figure


def _finish(axes: Any) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(which="both", labelsize=8)
