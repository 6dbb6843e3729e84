"""What page.js draws: curves as plain numbers, by group of runs.

A chart is {"id", "title", "xLabel", "series": [...]} and options of its axes; a
series {"name", "color", "points": [[x, y], ...]}, with "band" for the spread of
several seeds: [[x, low, high], ...]. Texts are {"en", "ko"}; what is not finite
is None.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import operator
from typing import Any

import numpy as np

from flax_resnet.insight.mistakes import Mistakes
from flax_resnet.insight.probe import Probe
from flax_resnet.report.measure import Measured
from flax_resnet.report.sentences import Text
from flax_resnet.training.setup import MAY_DIFFER

Chart = dict[str, Any]
Series = dict[str, Any]
# Numbers of the colors of page.css: evaluation and training of one run; groups.
EVAL, TRAIN, SKIPS = 0, 1, 5
_OF_GROUPS = (0, 2, 3, 4, 5, 6, 7)


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in nothing but their seed.

  Attributes:
    name: name on the page.
    runs: the runs, one at least.
    color: number of its color.
  """

  name: str
  runs: Sequence[Measured]
  color: int

  @property
  def first(self) -> Measured:
    """The first run with all there is: it is shown where one alone can be."""
    whole = (run for run in self.runs if run.mistakes is not None)
    return next(whole, self.runs[0])

  @property
  def finals(self) -> list[float]:
    """Accuracies of the last evaluations, in [0, 1]."""
    return [r.evaluations[-1]["val/top1"] for r in self.runs if r.evaluations]

  @functools.cached_property
  def mistakes(self) -> Mistakes | None:
    """What all runs together get wrong; the examples are those of the first."""
    found = [run.mistakes for run in self.runs if run.mistakes is not None]
    if not found:
      return None
    return dataclasses.replace(
      found[0],
      confusion=functools.reduce(operator.add, [m.confusion for m in found]),
      calibration=functools.reduce(
        operator.add, [m.calibration for m in found]
      ),
    )

  def accuracy_by_class(self) -> np.ndarray | None:
    """Returns accuracies, float [runs, n]; None if there is none."""
    found = [run.mistakes for run in self.runs if run.mistakes is not None]
    return np.stack([m.accuracy_by_class for m in found]) if found else None


def group(runs: Sequence[Measured]) -> list[Group]:
  """Returns runs in groups that differ in their seed alone, in order."""
  groups: dict[str, list[Measured]] = {}
  for run in runs:
    kept = {
      key: value
      for key, value in flat(run.config).items()
      if key != "seed" and key not in MAY_DIFFER
    }
    key = json.dumps(kept, sort_keys=True)
    groups.setdefault(key, []).append(run)
  return [
    Group(
      members[0].name
      if len(members) == 1
      else f"{members[0].name} (+{len(members) - 1})",
      members,
      _OF_GROUPS[number % len(_OF_GROUPS)],
    )
    for number, members in enumerate(groups.values())
  ]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
  """Returns the values of nested sections by key: "optim.momentum"."""
  if not isinstance(values, Mapping):
    return {prefix.removesuffix("."): values}
  return {
    name: leaf
    for key, value in values.items()
    for name, leaf in flat(value, f"{prefix}{key}.").items()
  }


def curves(groups: Sequence[Group]) -> list[Chart]:
  """Returns what runs have logged by step: those that there are."""
  accuracy, loss, rate, pace = (
    Text("top-1 accuracy", "top-1 정확도"),
    Text("cross-entropy loss", "교차 엔트로피 손실"),
    Text("learning rate", "학습률"),
    Text("images/s in training", "학습 속도(장/초)"),
  )
  both = ("train", "val")
  charts = [
    ("top1", accuracy, both, {"percent": True}),
    ("loss", loss, both, {"log": True}),
    ("learning_rate", rate, (), {"zero": True}),
    ("images_per_second", pace, (), {"zero": True}),
  ]
  step = Text("step", "단계")
  found = []
  for key, title, parts, options in charts:
    series = [
      each
      for one in groups
      for part in parts or ("",)
      if (each := _by_step(one, part, key, alone=len(groups) == 1))
    ]
    if series:
      found.append(_chart(f"curve-{key}", title, step, series, **options))
  return found


def _by_step(one: Group, part: str, key: str, *, alone: bool) -> Series | None:
  """Returns a column of metrics.jsonl: of several seeds mean and deviation."""
  column = f"{part}/{key}" if part else key
  values = [
    {row["step"]: row[column] for row in run.rows if column in row}
    for run in one.runs
  ]
  values = [each for each in values if each]
  if not values:
    return None
  names = {
    "train": Text("training", "학습"),
    "val": Text("evaluation", "평가"),
    "": Text("training", "학습"),
  }
  name = names[part]
  color, training = one.color, part == "train"
  if alone:
    color = TRAIN if training else EVAL
  elif part:
    name = Text(*(f"{one.name}, {word}" for word in name))
  else:
    name = Text(one.name, one.name)
  series = {"name": name, "color": color, "dash": training and not alone}
  if len(values) == 1:
    return {**series, "points": list(map(list, values[0].items()))}
  steps = [s for s in values[0] if all(s in each for each in values)]
  return {
    **series,
    **_mean_and_band(steps, [[each[s] for s in steps] for each in values]),
  }


def _mean_and_band(
  xs: Sequence[float], rows: Sequence[Sequence[float]]
) -> dict[str, Any]:
  means = np.mean(rows, 0).tolist()
  spreads = np.std(rows, 0, ddof=1).tolist()
  both = list(zip(xs, means, spreads, strict=True))
  return {
    "points": [[x, mean] for x, mean, _ in both],
    "band": [[x, mean - s, mean + s] for x, mean, s in both],
  }


def reliability(groups: Sequence[Group]) -> Chart | None:
  """Returns accuracy over confidence: on the diagonal both are equal."""
  series = []
  for one in groups:
    if one.mistakes is None:
      continue
    bins = one.mistakes.calibration
    filled = np.flatnonzero(bins.counts)
    counts = [int(bins.counts[n]) for n in filled]
    points = np.stack([bins.confidence[filled], bins.accuracy[filled]], 1)
    series.append(
      {
        "name": Text(one.name, one.name),
        "color": one.color,
        "points": points.tolist(),
        "notes": [Text(f"of {n:,} images", f"/ {n:,}장") for n in counts],
      }
    )
  if not series:
    return None
  return _chart(
    "reliability",
    Text("accuracy by confidence", "확신에 따른 정확도"),
    Text(
      "mean probability of the predicted class", "예측한 클래스의 평균 확률"
    ),
    series,
    percent=True,
    xPercent=True,
    xRange=[0, 1],
    yRange=[0, 1],
    diagonal=True,
  )


def gradients(groups: Sequence[Group]) -> Chart | None:
  """Returns norms of the gradient at the blocks."""
  series = _of_probes(groups, lambda probe: probe.at_blocks("gradient"))
  if not series:
    return None
  if len(groups) == 1 and (after := groups[0].first.after) and after.has_skips:
    values = after.at_blocks("gradient_by_skips")
    series.insert(
      1,
      {
        "name": Text("back through the skips alone", "스킵만을 지나서"),
        "color": SKIPS,
        "points": _numbered(values),
        "dash": True,
      },
    )
  return _chart(
    "gradients",
    Text("norm of the gradient of the loss", "손실의 기울기의 크기"),
    Text("block", "블록"),
    series,
    log=True,
    integers=True,
  )


def residuals(groups: Sequence[Group]) -> Chart | None:
  """Returns norms of F(x) over those of x at the blocks."""
  with_skips = [
    one for one in groups if one.first.after and one.first.after.has_skips
  ]
  series = _of_probes(
    with_skips, lambda probe: probe.at_blocks("residual"), len(groups) == 1
  )
  if not series:
    return None
  return _chart(
    "residuals",
    Text("norm of F(x) over norm of x", "x의 크기에 대한 F(x)의 크기"),
    Text("block", "블록"),
    series,
    zero=True,
    level=1,
    integers=True,
  )


def responses(groups: Sequence[Group]) -> Chart | None:
  """Returns standard deviations of the layers' responses."""
  series = _of_probes(
    groups,
    lambda probe: list(probe.responses.values()),
    notes_of=lambda probe: list(probe.responses),
  )
  if not series:
    return None
  return _chart(
    "responses",
    Text("standard deviation of the response", "응답의 표준편차"),
    Text("layer", "층"),
    series,
    zero=True,
    integers=True,
  )


def _of_probes(
  groups: Sequence[Group],
  values_of: Callable[[Probe], Sequence[float | None]],
  alone: bool | None = None,
  notes_of: Callable[[Probe], Sequence[str]] | None = None,
) -> list[Series]:
  """Returns a series after training, of one group also before it.

  Args:
    groups: the groups.
    values_of: function from a probe to its values, in order.
    alone: whether there is one group; default None: if there is one.
    notes_of: function from a probe to what a pointer says beside the values.
  """
  alone = len(groups) == 1 if alone is None else alone
  series, colors = [], {"after": EVAL, "before": TRAIN}
  for one in groups:
    moments = {"after": Text("after training", "학습 후")}
    if alone:
      moments["before"] = Text("before training", "학습 전")
    for moment, name in moments.items():
      probes = [p for run in one.runs if (p := getattr(run, moment))]
      if not probes:
        continue
      rows = [values_of(probe) for probe in probes]
      if len(rows) == 1:
        numbers = {"points": _numbered(rows[0])}
      else:
        values = np.array(rows, float)
        numbers = _mean_and_band(range(1, values.shape[1] + 1), values.tolist())
      series.append(
        {
          "name": name if alone else Text(one.name, one.name),
          "color": colors[moment] if alone else one.color,
          **numbers,
          **({"notes": notes_of(probes[0])} if notes_of else {}),
        }
      )
  return series


def _numbered(values: Sequence[float | None]) -> list[list[float | None]]:
  return [[number, value] for number, value in enumerate(values, start=1)]


def _chart(
  identity: str, title: Text, label: Text, series: list[Series], **options: Any
) -> Chart:
  return {
    "id": identity,
    "title": title,
    "xLabel": label,
    "series": series,
    **options,
  }
