"""Several runs beside each other: Figs. 6 and 7 and Table 3 of the paper."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from flax_resnet.insight import figures
from flax_resnet.insight.probe import Probe
from flax_resnet.insight.study import written
from flax_resnet.insight.trained import Trained
from flax_resnet.training.logbook import is_evaluation, read
from flax_resnet.training.schema import InputError
from flax_resnet.training.state import count_parameters
from flax_resnet.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Row:
  """What a run came to.

  Attributes:
    model: Of `list_models()`.
    data: Name of the data set.
    shortcut: As in `ResNet`.
    parameters: How many.
    step: Of the last evaluation.
    train_error: In the last line that was logged, of augmented images.
    val_error: Of the last evaluation.
    val_count: Images of that evaluation.
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
    workdirs: Of the runs.
    out: A folder; made if it is not there.
    num_images: Of the training set of each run, that go through its network
      together.

  Returns:
    A row for each run by its name, and the files that were written.

  Raises:
    InputError: When one is not a run, or has not been evaluated yet.
  """
  places = _named(workdirs)
  metrics = {name: _metrics(workdir) for name, workdir in places.items()}
  rows, before, after = {}, {}, {}
  for name, workdir in places.items():
    trained = Trained.load(workdir)
    rows[name] = _row(trained, metrics[name])
    before[name], after[name] = trained.probes(num_images)
  out.mkdir(parents=True, exist_ok=True)
  pictures = _draw(metrics, before, after, _where(rows.values()), out)
  report = {
    "runs": {
      name: {
        **dataclasses.asdict(row),
        "before": dataclasses.asdict(before[name]),
        "after": dataclasses.asdict(after[name]),
      }
      for name, row in rows.items()
    },
  }
  return rows, written(out, report, pictures)


def table(rows: Mapping[str, Row]) -> str:
  """Returns the rows as text, a run a line."""
  width = max(len("run"), *map(len, rows))
  head = (
    f"{'run':{width}}  {'network':22}  {'shortcut':14}  {'parameters':>11}  "
    f"{'step':>7}  {'train error':>11}  {'val error':>9}"
  )
  return "\n".join(
    [
      head,
      *(
        f"{name:{width}}  {row.model:22}  {row.shortcut:14}  "
        f"{row.parameters:11,}  {row.step:7,}  {row.train_error:11.2%}  "
        f"{row.val_error:9.2%}"
        for name, row in rows.items()
      ),
    ]
  )


def _where(rows: Collection[Row]) -> str:
  """Returns the networks, data sets and steps of runs, for titles."""
  models, data, steps = (
    ", ".join(map(str, sorted(set(values))))
    for values in zip(*((r.model, r.data, r.step) for r in rows), strict=True)
  )
  return f"{models} on {data}, step {steps}"


def _draw(
  metrics: Mapping[str, Sequence[Mapping[str, Any]]],
  before: Mapping[str, Probe],
  after: Mapping[str, Probe],
  where: str,
  out: pathlib.Path,
) -> list[str]:
  """Writes the pictures and returns their names."""
  colours = figures.colours(list(metrics))
  figures.curves(metrics, f"Errors by step\n{where}", out / "inspect_curves")
  figures.gradients(
    {
      "before training": [
        (name, found, colours[name]) for name, found in before.items()
      ],
      "after training": [
        (name, found, colours[name]) for name, found in after.items()
      ],
    },
    f"Does the gradient reach the first blocks?\n{where}",
    out / "inspect_gradients",
  )
  series = [(name, found, colours[name]) for name, found in after.items()]
  figures.responses(
    series,
    f"How strongly do layers respond?\n{where}",
    out / "inspect_responses",
  )
  skips = [each for each in series if each[1].has_skips]
  if skips:
    figures.residuals(
      skips,
      f"Is F(x) a small correction of x?\n{where}",
      out / "inspect_residuals",
    )
  return [
    "curves",
    "gradients",
    "responses",
    *(["residuals"] if skips else []),
  ]


def _named(workdirs: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
  """Returns workdirs by name; by more of their paths where names are alike."""
  if len({workdir.name for workdir in workdirs}) == len(workdirs):
    return {workdir.name: workdir for workdir in workdirs}
  paths = [workdir.resolve() for workdir in workdirs]
  above = os.path.commonpath(paths)
  return {os.path.relpath(path, above): path for path in paths}


def _metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run, one of them an evaluation at least."""
  read_config(workdir)  # Fails in a folder that is not a workdir.
  rows = read(workdir / "metrics.jsonl")
  if not any(map(is_evaluation, rows)):
    raise InputError(f"the run in {workdir} has not been evaluated yet")
  return rows


def _row(trained: Trained, metrics: Sequence[Mapping[str, Any]]) -> Row:
  evaluated = [row for row in metrics if is_evaluation(row)][-1]
  logged = [row for row in metrics if "train/top1" in row]
  return Row(
    model=trained.run.recipe.model["name"],
    data=trained.run.recipe.data["name"],
    shortcut=trained.run.model.shortcut,
    parameters=count_parameters(trained.after),
    step=evaluated["step"],
    train_error=1 - logged[-1]["train/top1"] if logged else float("nan"),
    val_error=1 - evaluated["val/top1"],
    val_count=evaluated["val/count"],
  )
