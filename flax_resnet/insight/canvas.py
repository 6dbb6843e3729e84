"""What a picture is drawn on, and a curve that says what it leaves out."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import math
import pathlib
import textwrap
from typing import Any

from flax_resnet.training.curves import noted


def line(
  axes: Any, numbers: Sequence[int], values: Iterable[Any], **style: Any
) -> None:
  """Draws a curve; its label says how many of its values are missing.

  Args:
    axes: To draw on, with its scale.
    numbers: Of blocks or layers.
    values: At them.
    **style: Of matplotlib, with the label.
  """
  values = [math.nan if value is None else value for value in values]
  log = axes.get_yscale() == "log"
  style["label"] = noted(style["label"], values, log)
  axes.plot(numbers, values, **style)
  # The axis of blocks is there, whether they have a value or not.
  ends = [(numbers[0], 0), (numbers[-1], 0)]
  axes.update_datalim(ends, updatey=False)


@contextlib.contextmanager
def canvas(
  title: str,
  path: pathlib.Path,
  grid: tuple[int, int],
  height: float = 4.0,
  **options: Any,
) -> Iterator[list[Any]]:
  """Yields the axes of a new picture, and writes it as PNG and SVG."""
  from matplotlib import ticker
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  width = 2.1 * grid[1] if grid[1] > 3 else max(4.0 * grid[1], 8)
  figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  all_axes = figure.subplots(*grid, squeeze=False, **options).ravel()
  lines = [textwrap.fill(line, 95) for line in title.splitlines()]
  figure.suptitle(
    "\n".join(lines), fontsize=11, fontweight="bold", x=0.01, ha="left"
  )
  yield list(all_axes)
  for axes in all_axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(min(axes.title.get_fontsize(), 10))
    axes.tick_params(which="both", labelsize=8)
    if axes.get_xlabel() in ("block", "block (0: the stem)", "layer", "step"):
      axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
  for ending in (".png", ".svg"):
    partial = path.with_name(f"{path.name}.partial{ending}")
    figure.savefig(partial)
    partial.replace(path.with_name(path.name + ending))
