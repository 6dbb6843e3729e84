"""Several runs beside each other: Figs. 6 and 7 and Table 3 of the paper."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from flax_resnet import plots, storage
from flax_resnet.errors import InputError
from flax_resnet.insight.probe import Probe
from flax_resnet.insight.study import draw_responses, TrainedRun
from flax_resnet.models.variables import count_parameters
from flax_resnet.training.log import has_evaluation, read_rows


@dataclasses.dataclass(frozen=True)
class Row:
  """What a run came to.

  Attributes:
    model: name of the network, see `list_models()`.
    data: name of the data set.
    shortcut: kind of its shortcuts, as in `ResNet`.
    parameters: number of parameters.
    step: step of the last evaluation.
    train_error: share of the augmented training images that were put into
      another class, in the last row that says so.
    val_error: share of the evaluation images, at the last evaluation.
    val_count: number of evaluation images.
  """

  model: str
  data: str
  shortcut: str
  parameters: int
  step: int
  train_error: float
  val_error: float
  val_count: int


def compare_runs(
  workdirs: Sequence[pathlib.Path], out: pathlib.Path, num_images: int
) -> tuple[dict[str, Row], list[pathlib.Path]]:
  """Measures and draws several runs.

  Their errors by step, as in Fig. 6 of He et al. 2015; the standard deviations
  of their layers' responses, as in its Fig. 7; the norms of the gradient and
  of F(x) at their blocks; parameters and errors, as in its Table 3.

  Args:
    workdirs: folders of the runs.
    out: folder to write to, which is made if it is not there.
    num_images: number of training images of each run, as in
      `TrainedRun.probes`.

  Returns:
    A row for each run by its name, and the files that were written.

  Raises:
    InputError: if one is not a run, or has not been evaluated yet.
    WeightsError: if one has no checkpoint yet, or a damaged one.
  """
  named = _by_name(workdirs)
  metrics = {name: _read_metrics(workdir) for name, workdir in named.items()}
  out.mkdir(parents=True, exist_ok=True)  # Before the work, if it cannot be.
  rows, before, after = {}, {}, {}
  for name, workdir in named.items():
    trained = TrainedRun.load(workdir)
    rows[name] = _row(trained, metrics[name])
    before[name], after[name] = trained.probes(num_images)
  files = _draw(metrics, before, after, _subtitle(rows.values()), out)
  report = {
    name: {
      **dataclasses.asdict(row),
      "before": dataclasses.asdict(before[name]),
      "after": dataclasses.asdict(after[name]),
    }
    for name, row in rows.items()
  }
  storage.write_json(out / "inspect.json", {"runs": report})
  return rows, [out / "inspect.json", *files]


def table(rows: Mapping[str, Row]) -> str:
  """Returns the rows as text, a run a line."""
  width = max(len("run"), *map(len, rows))
  head = (
    f"{'run':{width}}  {'network':22}  {'shortcut':14}  {'parameters':>11}  "
    f"{'step':>7}  {'train error':>11}  {'val error':>9}"
  )
  lines = [
    f"{name:{width}}  {row.model:22}  {row.shortcut:14}  "
    f"{row.parameters:11,}  {row.step:7,}  {row.train_error:11.2%}  "
    f"{row.val_error:9.2%}"
    for name, row in rows.items()
  ]
  return "\n".join([head, *lines])


def _by_name(workdirs: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
  """Returns workdirs by name; by more of their paths where names are alike."""
  if len({workdir.name for workdir in workdirs}) == len(workdirs):
    return {workdir.name: workdir for workdir in workdirs}
  paths = [workdir.resolve() for workdir in workdirs]
  above = os.path.commonpath(paths)
  return {os.path.relpath(path, above): path for path in paths}


def _read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a run, one of them an evaluation at least."""
  storage.read_config(workdir)  # Raises in a folder that is not a workdir.
  rows = read_rows(workdir / "metrics.jsonl")
  if not any(map(has_evaluation, rows)):
    raise InputError(f"the run in {workdir} has not been evaluated yet")
  return rows


def _row(trained: TrainedRun, metrics: Sequence[Mapping[str, Any]]) -> Row:
  evaluation = [row for row in metrics if has_evaluation(row)][-1]
  logged = [row for row in metrics if "train/top1" in row]
  return Row(
    model=trained.run.recipe.model["name"],
    data=trained.run.recipe.data["name"],
    shortcut=trained.run.model.shortcut,
    parameters=count_parameters(trained.after["params"]),
    step=evaluation["step"],
    train_error=1 - logged[-1]["train/top1"] if logged else float("nan"),
    val_error=1 - evaluation["val/top1"],
    val_count=evaluation["val/count"],
  )


def _subtitle(rows: Collection[Row]) -> str:
  """Returns the networks, data sets and steps of runs."""
  models, data, steps = (
    ", ".join(map(str, sorted(set(values))))
    for values in zip(*((r.model, r.data, r.step) for r in rows), strict=True)
  )
  return f"{models} on {data}, step {steps}"


def _draw(
  metrics: Mapping[str, Sequence[Mapping[str, Any]]],
  before: Mapping[str, Probe],
  after: Mapping[str, Probe],
  subtitle: str,
  out: pathlib.Path,
) -> list[pathlib.Path]:
  styles = plots.run_styles(metrics)
  moments = {"before training": before, "after training": after}
  return [
    *plots.error_curves(
      metrics, styles, f"Errors by step\n{subtitle}", out / "inspect_curves"
    ),
    *plots.gradient_norms(
      {
        moment: {name: found.gradients() for name, found in probes.items()}
        for moment, probes in moments.items()
      },
      styles,
      f"Does the gradient reach the first blocks?\n{subtitle}",
      out / "inspect_gradients",
      from_stem=True,
    ),
    *draw_responses(after, styles, f"\n{subtitle}", out),
  ]
