"""A sentence on each picture of the page: what it shows for this very run.

In English and in Korean. Numbers come from what was measured; a picture whose
numbers are missing has no sentence.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from flax_resnet.insight.mistakes import Mistakes
from flax_resnet.insight.probe import Probe
from flax_resnet.report.measure import Example, Stage
from flax_resnet.training.log import Row


class Text(NamedTuple):
  """A text in the two languages of the page."""

  en: str
  ko: str


def accuracy(evaluations: Sequence[Row], rows: Sequence[Row]) -> Text | None:
  """Returns how the accuracy of evaluation came about."""
  if not evaluations:
    return None
  first, last = evaluations[0], evaluations[-1]
  best = max(
    evaluations, key=lambda row: np.nan_to_num(row["val/top1"], nan=-1)
  )
  end = last["val/top1"]
  if len(evaluations) == 1:
    en = f"The one evaluation, at step {last['step']:,}, recognizes {end:.2%}."
    ko = f"{last['step']:,}단계의 단 한 번의 평가에서 {end:.2%}를 맞혔다."
  else:
    en = (
      f"Evaluation goes from {first['val/top1']:.2%} at step "
      f"{first['step']:,} to {end:.2%} at step {last['step']:,}"
    )
    ko = (
      f"평가 정확도는 {first['step']:,}단계의 {first['val/top1']:.2%}에서 "
      f"{last['step']:,}단계의 {end:.2%}까지 갔다"
    )
    if best["val/top1"] > end:
      en += f"; its best is {best['val/top1']:.2%} at step {best['step']:,}."
      ko += f"(최고는 {best['step']:,}단계의 {best['val/top1']:.2%})."
    else:
      en, ko = f"{en}, its best.", f"{ko}(최고치)."
  training = [row["train/top1"] for row in rows if "train/top1" in row]
  if training and math.isfinite(gap := 100 * (training[-1] - end)):
    low = gap >= 0
    en += (
      f" It ends {abs(gap):.1f} points {'below' if low else 'above'} the "
      "images of training, as they are augmented."
    )
    ko += (
      f" 마지막에는 (증강된) 학습 이미지의 정확도보다 {abs(gap):.1f}포인트 "
      f"{'낮다' if low else '높다'}."
    )
  return Text(en, ko)


def accuracy_of_seeds(finals: Sequence[float]) -> Text:
  """Returns what runs that differ in their seed came to."""
  mean, spread, count = np.mean(finals), np.std(finals, ddof=1), len(finals)
  return Text(
    f"{count} seeds end at {mean:.2%} ± {100 * spread:.2f} points (standard "
    f"deviation), from {min(finals):.2%} to {max(finals):.2%}.",
    f"시드 {count}개의 마지막 정확도는 {mean:.2%} ± {100 * spread:.2f}포인트"
    f"(표준편차)이며, {min(finals):.2%}에서 {max(finals):.2%} 사이에 있다.",
  )


def loss(evaluations: Sequence[Row]) -> Text | None:
  """Returns where the loss of evaluation was lowest."""
  found = [r for r in evaluations if math.isfinite(r.get("val/loss", math.nan))]
  if not found:
    return None
  lowest, last = min(found, key=lambda r: r["val/loss"]), found[-1]
  if lowest is last:
    return Text(
      f"The evaluation loss ends at its lowest, {last['val/loss']:.4g}.",
      f"평가 손실은 마지막에 가장 낮다({last['val/loss']:.4g}).",
    )
  rise = last["val/loss"] / lowest["val/loss"] - 1
  return Text(
    f"The evaluation loss is lowest at step {lowest['step']:,} "
    f"({lowest['val/loss']:.4g}) and ends {rise:.1%} above that "
    f"({last['val/loss']:.4g}).",
    f"평가 손실은 {lowest['step']:,}단계에서 가장 낮고"
    f"({lowest['val/loss']:.4g}), 마지막에는 그보다 {rise:.1%} 높다"
    f"({last['val/loss']:.4g}).",
  )


def learning_rate(rows: Sequence[Row]) -> Text | None:
  """Returns where the learning rate peaked."""
  found = [row for row in rows if "learning_rate" in row]
  if not found:
    return None
  peak, last = max(found, key=lambda r: r["learning_rate"]), found[-1]
  return Text(
    f"The learning rate is highest in the row of step {peak['step']:,} "
    f"({peak['learning_rate']:.4g}) and ends at {last['learning_rate']:.3g}.",
    f"학습률은 {peak['step']:,}단계의 기록에서 가장 높고"
    f"({peak['learning_rate']:.4g}), 마지막은 {last['learning_rate']:.3g}이다.",
  )


def pace(rows: Sequence[Row]) -> Text | None:
  """Returns how many images a second were trained on."""
  found = [r["images_per_second"] for r in rows if "images_per_second" in r]
  if not found:
    return None
  middle, low, high = np.median(found), min(found), max(found)
  return Text(
    f"Half of the rows have {middle:,.0f} images/s or more (from {low:,.0f} to "
    f"{high:,.0f}); evaluation and saving are left out.",
    f"기록의 절반은 초당 {middle:,.0f}장 이상이다({low:,.0f}~{high:,.0f}장; "
    "평가와 저장 시간은 뺐다).",
  )


def network(stages: Sequence[Stage]) -> Text | None:
  """Returns where the parameters of a network are."""
  total = sum(stage.parameters for stage in stages)
  if not total:
    return None
  blocks = sum(stage.blocks for stage in stages)
  most = max(stages, key=lambda stage: stage.parameters)
  share = most.parameters / total
  return Text(
    f"{total:,} parameters around {blocks} blocks; {share:.0%} of them are in "
    f"{most.name}.",
    f"블록 {blocks}개, 매개변수 {total:,}개. 그중 {share:.0%}가 {most.name}에 "
    "있다.",
  )


def by_class(
  accuracies: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> Text | None:
  """Returns which classes are recognized least and most often."""
  there = np.flatnonzero(counts)
  if not len(there):
    return None
  worst, best = (
    int(there[pick(accuracies[there])]) for pick in (np.argmin, np.argmax)
  )
  return Text(
    f"“{names[worst]}” is recognized least often ({accuracies[worst]:.1%} of "
    f"{counts[worst]:,.0f} images), “{names[best]}” most often "
    f"({accuracies[best]:.1%}).",
    f"가장 자주 틀리는 클래스는 “{names[worst]}”"
    f"({counts[worst]:,.0f}장 중 {accuracies[worst]:.1%} 정답), 가장 잘 맞히는 "
    f"클래스는 “{names[best]}”({accuracies[best]:.1%})이다.",
  )


def confusion(counts: np.ndarray, names: Sequence[str]) -> Text:
  """Returns the most frequent confusion."""
  errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
  total = int(errors.sum())
  if not total:
    return Text(
      "No image was put into another class.",
      "다른 클래스로 분류된 이미지가 없다.",
    )
  if errors.max() == 1 < total:
    return Text(
      f"No two of the {total:,} errors are alike.",
      f"오류 {total:,}건 중 같은 혼동은 두 번 없다.",
    )
  label, predicted = map(int, np.unravel_index(errors.argmax(), errors.shape))
  number, of = errors[label, predicted], counts[label].sum()
  return Text(
    f"The most frequent confusion: “{names[label]}” taken for "
    f"“{names[predicted]}”, {number:,.0f} of {of:,.0f} images and "
    f"{number / total:.0%} of all {total:,} errors.",
    f"가장 잦은 혼동은 “{names[label]}” → “{names[predicted]}”이다: "
    f"{of:,.0f}장 중 {number:,.0f}장, 전체 오류 {total:,}건의 "
    f"{number / total:.0%}.",
  )


def calibration(mistakes: Mistakes) -> Text | None:
  """Returns whether the network is surer than it is right."""
  bins = mistakes.calibration
  if not math.isfinite(bins.error):
    return Text(
      "The probabilities are not finite: there is no calibration.",
      "확률이 유한하지 않아 보정을 잴 수 없다.",
    )
  gap = 100 * bins.overconfidence
  over = gap > 0
  return Text(
    f"On average the network is {abs(gap):.1f} points "
    f"{'surer than it is right' if over else 'less sure than it is right'}; "
    f"the expected calibration error is {bins.error:.2%}.",
    f"신경망의 확신은 평균적으로 정확도보다 {abs(gap):.1f}포인트 "
    f"{'높고(과신)' if over else '낮고(과소 확신)'}, 기대 보정 오차(ECE)는 "
    f"{bins.error:.2%}이다.",
  )


def errors(mistakes: Mistakes, names: Sequence[str]) -> Text:
  """Returns how many images are wrong, and the surest of them."""
  total = int(mistakes.confusion.sum())
  wrong = total - int(np.trace(mistakes.confusion))
  if not wrong:
    return Text(
      f"All {total:,} images are recognized.",
      f"이미지 {total:,}장을 모두 맞혔다.",
    )
  first, bins = mistakes.most_confident[0], mistakes.calibration
  sure = int(bins.counts[-1] - bins.right[-1])
  edge = 1 - 1 / len(bins.counts)
  return Text(
    f"{wrong:,} of {total:,} images are wrong, {sure:,} of them with a "
    f"probability above {edge:.0%}; the surest takes "
    f"“{names[first.label]}” for “{names[first.predicted]}” "
    f"({first.probability:.1%}).",
    f"{total:,}장 중 {wrong:,}장이 틀렸고, 그중 {sure:,}장은 확률이 "
    f"{edge:.0%}를 넘는다. 가장 확신한 오류는 “{names[first.label]}” → "
    f"“{names[first.predicted]}”({first.probability:.1%})이다.",
  )


def unsure(mistakes: Mistakes, names: Sequence[str]) -> Text | None:
  """Returns the right answer that was nearly none."""
  if not mistakes.least_confident:
    return None
  first, bins = mistakes.least_confident[0], mistakes.calibration
  half = len(bins.counts) // 2
  below = int(bins.right[:half].sum())
  right = int(np.trace(mistakes.confusion))
  return Text(
    f"The least sure right answer is “{names[first.label]}” with "
    f"{first.probability:.1%}; {below:,} of {right:,} right answers are below "
    f"{half / len(bins.counts):.0%}.",
    f"가장 자신 없이 맞힌 것은 “{names[first.label]}”({first.probability:.1%})"
    f"이고, 맞힌 {right:,}장 중 {below:,}장의 확률이 "
    f"{half / len(bins.counts):.0%} 아래이다.",
  )


def grad_cam(examples: Sequence[Example]) -> Text | None:
  """Returns on how much of a picture half of the map lies."""
  areas = []
  for example in examples:
    values = np.sort(np.nan_to_num(example.cam).ravel())[::-1]
    if values.sum():
      half = np.searchsorted(np.cumsum(values), values.sum() / 2) + 1
      areas.append(half / values.size)
  if not areas:
    return None
  middle = np.median(areas)
  return Text(
    f"Half of the color lies on {middle:.0%} of a picture (median of "
    f"{len(areas)}).",
    f"색의 절반이 그림의 {middle:.0%}에 모여 있다({len(areas)}장의 중앙값).",
  )


def gradients(before: Probe, after: Probe) -> Text | None:
  """Returns how much of the gradient reaches the first block."""
  ratio, was = (
    probe.blocks[0].gradient / probe.blocks[-1].gradient
    if probe.blocks[-1].gradient
    else math.nan
    for probe in (after, before)
  )
  if not (math.isfinite(ratio) and math.isfinite(was)):
    return Text(
      "The gradient is not finite, or zero, at a block.",
      "어떤 블록에서 기울기가 유한하지 않거나 0이다.",
    )
  en = (
    f"At the first block the gradient is {ratio:.3g} times that at the last; "
    f"before training it was {was:.3g} times"
  )
  ko = (
    f"첫 블록에서의 기울기는 마지막 블록의 {ratio:.3g}배이고, 학습 전에는 "
    f"{was:.3g}배였다."
  )
  alone = after.blocks[0].gradient_by_skips
  if alone is None:
    return Text(
      f"{en}. There are no skips to go back through.",
      f"{ko} 되돌아올 스킵은 없다.",
    )
  share = alone / after.blocks[0].gradient
  return Text(
    f"{en}. Back through the skips alone it would be {share:.3g} times as "
    "large.",
    f"{ko} 스킵만을 지나 되돌아오면 그 크기는 {share:.3g}배가 된다.",
  )


def residuals(after: Probe) -> Text | None:
  """Returns how large F(x) is beside x."""
  found = {
    block.name: block.residual
    for block in after.blocks
    if block.residual is not None and math.isfinite(block.residual)
  }
  if not found:
    return None
  mean, most = np.mean(list(found.values())), max(found, key=found.__getitem__)
  return Text(
    f"F(x) is on average {mean:.2f} times as large as x, and largest in {most} "
    f"({found[most]:.2f} times).",
    f"F(x)의 크기는 평균적으로 x의 {mean:.2f}배이고, {most}에서 가장 크다"
    f"({found[most]:.2f}배).",
  )


def responses(after: Probe) -> Text | None:
  """Returns which layers respond least and most."""
  found = {k: v for k, v in after.responses.items() if math.isfinite(v)}
  if not found:
    return None
  least, most = (pick(found, key=found.__getitem__) for pick in (min, max))
  return Text(
    f"After training the layers respond with standard deviations from "
    f"{found[least]:.3g} ({least}) to {found[most]:.3g} ({most}).",
    f"학습 후 층 응답의 표준편차는 {found[least]:.3g}({least})에서 "
    f"{found[most]:.3g}({most})까지이다.",
  )
