"""The sections of the page: what they show of each group of runs.

A section is a function of the groups and of the list of charts that it adds its
own to; it yields HTML, or nothing where there is nothing to show.
"""

from collections.abc import Callable, Iterator, Sequence
import html
import math

import numpy as np

from flax_resnet.report import charts, markup, sentences
from flax_resnet.report.charts import Chart, Group
from flax_resnet.report.measure import Measured
from flax_resnet.report.sentences import Text

Section = Callable[[Sequence[Group], list[Chart]], Iterator[str]]


def summary(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  del drawn
  problems = [
    problem
    if len(groups) == 1 and len(one.runs) == 1
    else f"{run.name}: {problem}"
    for one in groups
    for run in one.runs
    for problem in run.problems
  ]
  networks = dict.fromkeys(run.network for one in groups for run in one.runs)
  yield f"<p>{html.escape(', '.join(networks))}</p>"
  if problems:
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    head = markup.both(Text("What is missing here", "이 페이지에 없는 것"))
    yield f'<div class="panel missing"><b>{head}</b><ul>{items}</ul></div>'
  if len(groups) == 1 and len(groups[0].runs) == 1:
    yield markup.facts(_facts(groups[0].first))
    return
  head = [
    Text("run", "실행"),
    Text("seeds", "시드 수"),
    Text("parameters", "매개변수"),
    Text("step", "단계"),
    Text("top-1 (%)", "top-1 (%)"),
    Text("best (%)", "최고 (%)"),
    Text("loss", "손실"),
    Text("ECE (%)", "ECE (%)"),
    Text("time", "시간"),
  ]
  yield markup.table(head, map(_row, groups))
  for one in groups:
    if len(one.finals) > 1:
      text = sentences.accuracy_of_seeds(one.finals)
      yield markup.finding(_named(one, groups, text))


def _facts(run: Measured) -> Iterator[tuple[Text, str]]:
  if evaluations := run.evaluations:
    last = evaluations[-1]
    best = max(evaluations, key=lambda r: np.nan_to_num(r["val/top1"], nan=-1))
    yield Text("top-1 at the end", "마지막 top-1"), f"{last['val/top1']:.2%}"
    yield (
      Text(f"best, step {best['step']:,}", f"최고, {best['step']:,}단계"),
      f"{best['val/top1']:.2%}",
    )
    yield Text("images evaluated", "평가 이미지"), f"{last['val/count']:,}"
  if run.mistakes is not None:
    error = run.mistakes.calibration.error
    yield Text("calibration error", "보정 오차(ECE)"), f"{error:.2%}"
  if run.stages:
    total = sum(stage.parameters for stage in run.stages)
    yield Text("parameters", "매개변수"), f"{total:,}"
  if run.rows:
    yield Text("steps", "단계"), f"{run.rows[-1]['step']:,}"
    if seconds := run.rows[-1].get("seconds"):
      yield Text("time", "시간"), _duration(seconds)


def _row(one: Group) -> list[str]:
  last = [run.evaluations[-1] for run in one.runs if run.evaluations]
  best = [
    max(r["val/top1"] for r in run.evaluations)
    for run in one.runs
    if run.evaluations
  ]
  ece = [run.mistakes.calibration.error for run in one.runs if run.mistakes]
  seconds = [run.rows[-1].get("seconds") for run in one.runs if run.rows]
  parameters = sum(stage.parameters for stage in one.first.stages)
  steps = sorted({row["step"] for row in last})
  return [
    one.name,
    str(len(one.runs)),
    f"{parameters:,}" if parameters else "-",
    ", ".join(f"{step:,}" for step in steps) or "-",
    _mean(one.finals, 100),
    _mean(best, 100),
    _mean([row.get("val/loss", math.nan) for row in last], 1, 4),
    _mean(ece, 100),
    _duration(float(np.mean([s for s in seconds if s])))
    if any(seconds)
    else "-",
  ]


def _mean(values: Sequence[float], scale: float, digits: int = 2) -> str:
  """Returns "98.33 ± 0.28", or what there is of it."""
  if not values:
    return "-"
  text = f"{scale * np.mean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {scale * np.std(values, ddof=1):.{digits}f}"
  return text


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
  return f"{minutes // 60}:{minutes % 60:02} h"


def _named(
  one: Group, groups: Sequence[Group], text: Text | None
) -> Text | None:
  """Returns a sentence on a group, with its name if there are several."""
  if text is None or len(groups) == 1:
    return text
  return Text(*(f"{one.name}: {each}" for each in text))


def _of_first(
  one: Group, groups: Sequence[Group], text: Text | None
) -> Text | None:
  """Returns a sentence on the first run of a group, with its name."""
  if text is None or (name := _name_of_first(one, groups)) is None:
    return text
  return Text(*(f"{name}: {each}" for each in text))


def _name_of_first(one: Group, groups: Sequence[Group]) -> str | None:
  """Returns the name of the run that is shown; None if there is no other."""
  alone = len(groups) == len(one.runs) == 1
  return None if alone else one.first.name


def recipe(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  del drawn
  yield markup.heading(Text("What was run", "무엇을 실행했는가"))
  for one in groups:
    run = one.first
    if run.stages:
      sentence = sentences.network(run.stages)
      yield markup.finding(_named(one, groups, sentence))
      yield markup.network(run.stages)
  rows = []
  for run in (run for one in groups for run in one.runs):
    seconds = run.rows[-1].get("seconds") if run.rows else None
    rows.append(
      [
        run.name,
        run.devices or "-",
        _duration(seconds) if seconds else "-",
        "-" if run.step is None else f"{run.step:,}",
      ]
    )
  head = [
    Text("run", "실행"),
    Text("trained on", "학습 장치"),
    Text("time", "시간"),
    Text("measured at step", "측정한 단계"),
  ]
  yield markup.table(head, rows)
  names = [one.name for one in groups]
  configs = [charts.flat(one.first.config) for one in groups]
  title = Text(
    f"The recipe: {max(map(len, configs))} keys",
    f"레시피: 키 {max(map(len, configs))}개",
  )
  yield (
    f"<details><summary>{markup.both(title)}</summary>"
    f"{markup.recipe(names, configs)}</details>"
  )


def curves(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  found = charts.curves(groups)
  if not found:
    return
  drawn += found
  on = {
    "curve-top1": lambda run: sentences.accuracy(run.evaluations, run.rows),
    "curve-loss": lambda run: sentences.loss(run.evaluations),
    "curve-learning_rate": lambda run: sentences.learning_rate(run.rows),
    "curve-images_per_second": lambda run: sentences.pace(run.rows),
  }
  yield markup.heading(Text("Curves", "곡선"))
  yield markup.note(
    Text(
      "The numbers of metrics.jsonl: a pointer shows those of a step, a drag "
      "zooms in, a double click shows the whole again."
      + _of_seeds(groups, "A band is the standard deviation over seeds."),
      "metrics.jsonl의 값이다. 포인터를 올리면 그 단계의 값이 보이고, 끌면 "
      "확대되며, 두 번 누르면 전체로 돌아간다."
      + _of_seeds(groups, "띠는 시드에 따른 표준편차이다."),
    )
  )
  yield markup.grid(
    markup.panel(
      f"<h3>{markup.both(chart['title'])}</h3>",
      markup.chart(chart["id"]),
      *(
        markup.finding(_of_first(one, groups, on[chart["id"]](one.first)))
        for one in groups
      ),
    )
    for chart in found
  )


def _of_seeds(groups: Sequence[Group], text: str) -> str:
  return f" {text}" if any(len(one.runs) > 1 for one in groups) else ""


def classes(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  del drawn
  if all(one.mistakes is None for one in groups):
    return
  yield markup.heading(
    Text("Classes, and what is taken for what", "클래스별 정확도와 혼동")
  )
  yield markup.note(
    Text(
      "In the matrix, rows are classes and columns predictions."
      + _of_seeds(groups, "It counts all seeds together."),
      "행렬의 행은 클래스, 열은 예측이다."
      + _of_seeds(groups, "모든 시드를 합쳐서 센다."),
    )
  )
  panels = []
  for one in groups:
    values, mistakes = one.accuracy_by_class(), one.mistakes
    if values is None or mistakes is None:
      continue
    names, confusion = one.first.class_names, mistakes.confusion
    title = one.name if len(groups) > 1 else None
    counts = confusion.sum(1) / len(values)
    by_class = sentences.by_class(values.mean(0), counts, names)
    spread = values.std(0, ddof=1) if len(values) > 1 else None
    panels += [
      markup.panel(
        markup.finding(by_class),
        markup.bars(names, values.mean(0), spread, counts, one.color),
        title=title,
      ),
      markup.panel(
        markup.finding(sentences.confusion(confusion, names)),
        markup.matrix(confusion, names),
        title=title,
      ),
    ]
  yield markup.grid(panels)


def calibration(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  chart = charts.reliability(groups)
  if chart is None:
    return
  drawn.append(chart)
  yield markup.heading(Text("Calibration", "보정"))
  yield markup.grid(
    [
      markup.panel(
        f"<h3>{markup.both(chart['title'])}</h3>", markup.chart(chart["id"])
      ),
      markup.panel(
        *(
          markup.finding(
            _named(one, groups, sentences.calibration(one.mistakes))
          )
          for one in groups
          if one.mistakes is not None
        ),
        markup.note(
          Text(
            "Images in 15 bins by the probability of their predicted class. "
            "On the dotted line a network is right as often as it is sure; "
            "below it, it is too sure. The expected calibration error is the "
            "mean distance to it (Guo et al. 2017).",
            "예측한 클래스의 확률에 따라 이미지를 15개 구간으로 나누었다. "
            "점선 위에서는 확신한 만큼 맞히고, 그 아래에서는 지나치게 "
            "확신한다. 기대 보정 오차는 점선까지의 평균 거리이다(Guo 외 2017).",
          )
        ),
      ),
    ]
  )


def examples(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  del drawn
  shown = [
    (one.first, mistakes, _name_of_first(one, groups))
    for one in groups
    if (mistakes := one.first.mistakes) is not None
  ]
  if not shown:
    return
  yield markup.heading(Text("The most confident errors", "가장 확신한 오류"))
  yield markup.note(
    Text(
      "The image; where the network looks for the class that it says "
      "(Grad-CAM); where it looks for the right one. The number is that of the "
      "record in the evaluation split.",
      "이미지, 신경망이 답한 클래스를 위해 보는 곳(Grad-CAM), 옳은 클래스를 "
      "위해 보는 곳. 번호는 평가 데이터에서의 순번이다.",
    )
  )
  yield markup.grid(
    markup.panel(
      markup.finding(sentences.errors(mistakes, run.class_names)),
      markup.pictures(run.errors, run.class_names, mistakes=True),
      title=name,
    )
    for run, mistakes, name in shown
  )
  yield markup.heading(
    Text("The least confident right answers", "가장 자신 없이 맞힌 것")
  )
  yield markup.grid(
    markup.panel(
      markup.finding(sentences.unsure(mistakes, run.class_names)),
      markup.pictures(run.unsure, run.class_names, mistakes=False),
      markup.finding(sentences.grad_cam([*run.errors, *run.unsure])),
      title=name,
    )
    for run, mistakes, name in shown
  )


def skips(groups: Sequence[Group], drawn: list[Chart]) -> Iterator[str]:
  found = [
    (
      charts.gradients(groups),
      lambda r: sentences.gradients(r.before, r.after),
    ),
    (charts.residuals(groups), lambda r: sentences.residuals(r.after)),
    (charts.responses(groups), lambda r: sentences.responses(r.after)),
  ]
  found = [(chart, on) for chart, on in found if chart is not None]
  if not found:
    return
  drawn += [chart for chart, _ in found]
  images = next(
    run.after.images for one in groups for run in one.runs if run.after
  )
  yield markup.heading(
    Text("What the skip connections do", "스킵 연결이 하는 일")
  )
  yield markup.note(
    Text(
      f"Measured on {images} images of training, without augmentation, with "
      "the statistics of the batch.",
      f"증강하지 않은 학습 이미지 {images}장에서 배치 통계로 측정했다.",
    )
  )
  yield markup.grid(
    markup.panel(
      f"<h3>{markup.both(chart['title'])}</h3>",
      markup.chart(chart["id"]),
      *(
        markup.finding(_of_first(one, groups, on(one.first)))
        for one in groups
        if one.first.after is not None
      ),
    )
    for chart, on in found
  )


SECTIONS: tuple[Section, ...] = (
  summary,
  recipe,
  curves,
  classes,
  calibration,
  examples,
  skips,
)
