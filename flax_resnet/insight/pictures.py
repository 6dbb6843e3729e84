"""The figures of the experiments on trained networks.

They take plain values as those of `plots` do, and write PNG and SVG to `path`,
which has no ending.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

from etils import epy
import numpy as np

from flax_resnet import plots

with epy.lazy_imports():  # As in `plots`.
  import matplotlib
  from matplotlib import colors


def lesions(
  without: plots.Curves,
  removed: Mapping[str, Mapping[int, Sequence[float]]],
  reordered: Mapping[str, Sequence[tuple[float, float]]],
  styles: plots.Styles,
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws accuracies with blocks removed: Figs. 3 and 5 of Veit et al. 2016."""
  all_axes = single, several, order = plots.new_axes(title, 1, 3, sharey=True)
  for name, style in styles.items():
    values = [100 * (v if v is not None else math.nan) for v in without[name]]
    numbers = range(1, len(values) + 1)
    single.plot(numbers, values, marker="o", markersize=3, label=name, **style)
    means = {k: 100 * np.mean(each) for k, each in removed[name].items()}
    several.plot(means.keys(), means.values(), **style)
    points = [(x, 100 * y) for x, y in reordered[name]]
    order.plot(*np.reshape(points, (-1, 2)).T, ".", **style)
  single.set(title="without one block", xlabel="block", ylabel="accuracy (%)")
  several.set(title="without some, at random", xlabel="blocks removed")
  order.set(title="blocks swapped", xlabel="rank correlation with the order")
  single.legend(frameon=False, fontsize=8)
  return plots.save(all_axes, path)


def autocorrelations(
  curves: plots.Curves, styles: plots.Styles, title: str, path: pathlib.Path
) -> list[pathlib.Path]:
  """Draws autocorrelations by lag: Fig. 2 of Balduzzi et al. 2017."""
  (axes,) = plots.new_axes(title, 1, 1)
  plots.plot_by_number(axes, curves, styles, first=0, marker="o", markersize=3)
  axes.axhline(0, color="black", linewidth=0.6, linestyle=":")
  axes.set(xlabel="lag (steps along the line)")
  axes.set_ylabel("autocorrelation of the input gradient")
  axes.legend(frameon=False, fontsize=8)
  return plots.save([axes], path)


def path_lengths(
  norms: plots.Curves,
  shares: plots.Curves,
  styles: plots.Styles,
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws gradients by length of path: Fig. 6 of Veit et al. 2016."""
  both = one, all_paths = plots.new_axes(title, 1, 2)
  one.set_yscale("log")
  for axes, curves in ((one, norms), (all_paths, shares)):
    plots.plot_by_number(
      axes, curves, styles, first=0, marker="o", markersize=3
    )
    axes.set_xlabel("blocks on the path")
  one.set(title="norm of the gradient through one path")
  all_paths.set(title="share of all paths of a length")
  one.legend(frameon=False, fontsize=8)
  return plots.save(both, path)


def loss_surfaces(
  surfaces: Mapping[str, tuple[np.ndarray, np.ndarray]],
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws losses on a plane, all with one scale: Figs. 1 and 5 of Li et al.

  Args:
    surfaces: steps along both directions, float [n], and losses, float [n, n],
      by name. A loss that is not finite is drawn as the largest one.
    title: title of the picture.
    path: path of the picture.
  """
  finite = np.concatenate(
    [losses[np.isfinite(losses)] for _, losses in surfaces.values()]
  )
  tiny = 1e-3  # Of a loss of 0, there is no logarithm.
  low, high = (max(tiny, float(x)) for x in (finite.min(), finite.max()))
  # A picture of a few decades: one point of 1e20 would flatten the rest.
  high = max(min(high, 1e4 * low), 1.1 * low)
  norm = colors.LogNorm(low, high)
  levels = np.geomspace(low, high, 16)
  # With a plain net beside it, a column each; alone, beside one another.
  columns = max(2, len(surfaces))
  rows = 2 if len(surfaces) > 1 else 1
  figure = plots.new_figure(4.0 * columns, 3.8 * rows, title, fontsize=11)
  flat, steep = [], []
  for number, (name, (steps, losses)) in enumerate(surfaces.items(), 1):
    losses = np.clip(np.nan_to_num(losses, nan=high), low, high)
    axes = figure.add_subplot(rows, columns, number)
    axes.contourf(steps, steps, losses, levels, norm=norm, cmap="viridis")
    lines = axes.contour(
      steps, steps, losses, levels, colors="white", linewidths=0.5
    )
    axes.clabel(lines, levels[::3], fontsize=6, fmt=_number)
    axes.plot(0, 0, "+", color="white")
    axes.set(title=name, aspect="equal", xlabel="step along one direction")
    axes.set_ylabel("step along the other")
    ends = steps[[0, len(steps) // 2, -1]]
    axes.set(xticks=ends, yticks=ends)
    flat.append(axes)
    axes = figure.add_subplot(
      rows,
      columns,
      number + (columns if rows > 1 else 1),
      projection="3d",
    )
    grid = np.meshgrid(steps, steps)
    axes.plot_surface(
      *grid,
      np.log10(losses),
      facecolors=matplotlib.colormaps["viridis"](norm(losses)),
      rcount=len(steps),
      ccount=len(steps),
      linewidth=0.1,
      edgecolor="#ffffff40",
      shade=False,
    )
    axes.set_zlim(math.log10(low), math.log10(high))
    axes.zaxis.set_major_formatter(lambda z, _: _number(10**z))
    axes.set(title="loss, logarithmic", xticks=ends, yticks=ends)
    axes.tick_params(axis="z", labelsize=8)
    axes.view_init(elev=30, azim=-50)
    steep.append(axes)
  return plots.save([*flat, *steep], path)


def _number(value: float) -> str:
  return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def residuals_by_step(
  medians: Mapping[str, Mapping[int, np.ndarray]],
  spreads: Mapping[str, np.ndarray],
  title: str,
  path: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws norm(F(x)) / norm(x) at blocks by step, and over images at the end.

  Args:
    medians: medians over images, float [n blocks], by name and step.
    spreads: tenth, median and nine tenths, float [3, n], by name.
    title: title of the picture.
    path: path of the picture.
  """
  several = {name: each for name, each in medians.items() if len(each) > 1}
  all_axes = plots.new_axes(title, 1, len(several) + 1, sharey=True)
  palette = matplotlib.colormaps["viridis"]
  for axes, (name, by_step) in zip(all_axes, several.items(), strict=False):
    curves = np.stack(list(by_step.values()), 1)
    for number, curve in enumerate(curves, 1):
      share = (number - 1) / max(1, len(curves) - 1)
      # In a deep net, a legend of three of its blocks says the order.
      shown = number in (1, (len(curves) + 1) // 2, len(curves))
      axes.plot(
        list(by_step),
        curve,
        color=palette(0.9 * share),
        label=f"block {number}" if shown else None,
        linewidth=1.2,
      )
    axes.set(title=name, xlabel="step")
    axes.legend(frameon=False, fontsize=8)
  last, styles = all_axes[-1], plots.run_styles(spreads)
  for number, (name, (low, middle, high)) in enumerate(spreads.items()):
    blocks = np.arange(1, len(middle) + 1) + 0.15 * number
    errors = np.stack([middle - low, high - middle])
    style: Any = {**styles[name], "fmt": "o", "markersize": 3, "linewidth": 1}
    last.errorbar(blocks, middle, errors, label=name, **style)
  last.set(title="at the end, 80 % of the images", xlabel="block")
  last.legend(frameon=False, fontsize=8)
  for axes in all_axes:
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
  all_axes[0].set_ylabel("norm of F(x) over norm of x")
  all_axes[0].set_ylim(0, None)
  return plots.save(all_axes, path)
