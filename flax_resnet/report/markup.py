"""Parts of the page as HTML, each text in both of its languages."""

import base64
from collections.abc import Iterable, Sequence
import html
import io

import numpy as np
from PIL import Image

from flax_resnet.insight.grad_cam import overlay
from flax_resnet.report.measure import Example, Stage
from flax_resnet.report.sentences import Text

# Classes of which a matrix has a cell each, and bars a line each.
MOST_IN_MATRIX, MOST_BARS = 20, 24
# Pixels from which on a picture is a photograph: JPEG, and not enlarged.
_PHOTOGRAPH = 65
# Blocks of a stage that are drawn; of more, the first ones.
_MOST_BLOCKS = 12


def both(text: Text) -> str:
  """Returns a text in both languages, of which the page shows one."""
  en, ko = map(html.escape, text)
  return f'<span lang="en">{en}</span><span lang="ko">{ko}</span>'


def heading(text: Text) -> str:
  return f"<h2>{both(text)}</h2>"


def finding(text: Text | None) -> str:
  """Returns the sentence on a picture; nothing if there is none."""
  return "" if text is None else f'<p class="finding">{both(text)}</p>'


def note(text: Text) -> str:
  return f'<p class="note">{both(text)}</p>'


def panel(*parts: str, title: str | None = None) -> str:
  head = "" if title is None else f"<h3>{html.escape(title)}</h3>"
  return f'<div class="panel">{head}{"".join(parts)}</div>'


def grid(parts: Iterable[str]) -> str:
  return f'<div class="grid">{"".join(parts)}</div>'


def chart(identity: str) -> str:
  """Returns the place of a chart, which page.js draws there."""
  return f'<div class="chart" id="{html.escape(identity)}"></div>'


def facts(pairs: Iterable[tuple[Text, str]]) -> str:
  """Returns a row of a few numbers with what they are."""
  each = (
    f'<div class="fact panel"><b>{html.escape(value)}</b>'
    f'<span class="soft">{both(name)}</span></div>'
    for name, value in pairs
  )
  return f'<div class="facts">{"".join(each)}</div>'


def table(
  head: Sequence[Text], rows: Iterable[Sequence[str]], kind: str = "rows"
) -> str:
  """Returns a table of texts that scrolls where it is too wide."""
  top = "".join(f"<th>{both(text)}</th>" for text in head)
  body = "".join(
    f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
    for row in rows
  )
  return (
    f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def recipe(names: Sequence[str], configs: Sequence[dict[str, object]]) -> str:
  """Returns the keys of recipes, and in which of them they differ."""
  keys = list(dict.fromkeys(key for config in configs for key in config))
  rows = []
  for key in keys:
    values = [str(config.get(key, "-")) for config in configs]
    differs = ' class="differs"' if len(set(values)) > 1 else ""
    cells = "".join(f"<td>{html.escape(v)}</td>" for v in [key, *values])
    rows.append(f"<tr{differs}>{cells}</tr>")
  rows.sort(key=lambda row: "differs" not in row)
  head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *names])
  return (
    '<div class="scroll"><table class="rows recipe"><thead><tr>'
    f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def bars(
  names: Sequence[str],
  means: np.ndarray,
  spreads: np.ndarray | None,
  counts: np.ndarray,
  color: int,
) -> str:
  """Returns the accuracy of each class; of very many the least and the best.

  Args:
    names: names of the classes.
    means: float [n], accuracies in [0, 1]; NaN for a class without images.
    spreads: float [n], their standard deviations over seeds, or None.
    counts: int [n], images of each class.
    color: number of the color.
  """
  order, cut = np.arange(len(names)), Text("", "")
  if len(names) > MOST_BARS:
    there = np.flatnonzero(counts)
    ranked = there[np.argsort(means[there], kind="stable")]
    half = MOST_BARS // 2
    order = np.unique([*ranked[:half], *ranked[-half:]])
    order = order[np.argsort(means[order], kind="stable")]
    cut = Text(
      f"The {half} least and the {half} most often recognized of "
      f"{len(names):,} classes.",
      f"클래스 {len(names):,}개 중 가장 자주 틀린 {half}개와 가장 잘 맞힌 "
      f"{half}개.",
    )
  lines = []
  for n in order.tolist():
    name = html.escape(names[n])
    lines.append(f'<span class="name" title="{name}">{name}</span>')
    if not counts[n]:
      missing = both(Text("no image", "이미지 없음"))
      lines.append(f'<span class="soft">{missing}</span><span>-</span>')
      continue
    spread = "" if spreads is None else f" ± {100 * spreads[n]:.1f}"
    lines.append(
      f'<span class="bar"><i style="width:{100 * means[n]:.2f}%"></i></span>'
      f"<span>{100 * means[n]:.1f}{spread} %</span>"
    )
  return (
    f'<div class="bars" style="--color:var(--c{color})">{"".join(lines)}</div>'
    + (note(cut) if cut.en else "")
  )


def matrix(counts: np.ndarray, names: Sequence[str]) -> str:
  """Returns the confusion matrix: cells of few classes, a picture of many."""
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  errors = np.where(np.eye(len(counts), dtype=bool), 0, shares)
  # One error of a few examples shall not look like many.
  most = max(0.1, float(errors.max()))
  if len(names) > MOST_IN_MATRIX:
    return _matrix_picture(errors / most) + _most_confused(counts, names)
  head = "".join(f"<th>{html.escape(name[:6])}</th>" for name in names)
  rows = []
  for i, name in enumerate(names):
    cells = []
    for j in range(len(names)):
      right = i == j
      share = shares[i, j] if right else errors[i, j] / most
      kind = "right" if right else "" if counts[i, j] else "none"
      text = f"{counts[i, j]:,.0f}" if counts[i, j] else "·"
      title = f"{name} → {names[j]}: {counts[i, j]:,.0f} ({shares[i, j]:.1%})"
      cells.append(
        f'<td class="{kind}" style="--share:{share:.3f}" '
        f'title="{html.escape(title)}">{text}</td>'
      )
    rows.append(f"<tr><th>{html.escape(name[:14])}</th>{''.join(cells)}</tr>")
  return (
    '<div class="scroll"><table class="matrix"><thead><tr><th></th>'
    f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _matrix_picture(strength: np.ndarray) -> str:
  """Returns a pixel a cell: white for none, red for the most frequent."""
  white, red = np.array([246, 247, 249]), np.array([200, 68, 44])
  pixels = white + np.sqrt(strength)[..., None] * (red - white)
  return image(pixels.astype(np.uint8), "confusion matrix", "heat")


def _most_confused(counts: np.ndarray, names: Sequence[str]) -> str:
  errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
  order = np.argsort(-errors, axis=None, kind="stable")[:12]
  rows = [
    (f"{names[i]} → {names[j]}", f"{errors[i, j]:,.0f}")
    for i, j in zip(*np.unravel_index(order, errors.shape), strict=True)
    if errors[i, j]
  ]
  return table(
    [Text("class → taken for", "클래스 → 예측"), Text("images", "장")], rows
  )


def pictures(
  examples: Sequence[Example], names: Sequence[str], *, mistakes: bool
) -> str:
  """Returns images beside where the network looks, with their classes.

  Args:
    examples: the examples.
    names: names of the classes.
    mistakes: whether the predicted class is another than that of the image:
      then there is a map of both.
  """
  figures = []
  for example in examples:
    it = example.mistake
    label, predicted = names[it.label], names[it.predicted]
    parts = [
      image(it.image, label),
      image(overlay(it.image, example.cam, 112), f"Grad-CAM: {predicted}"),
    ]
    text = f"{predicted} {it.probability:.1%} · #{it.index:,}"
    if mistakes:
      own = overlay(it.image, example.cam_of_label, 112)
      parts.append(image(own, f"Grad-CAM: {label}"))
      text = f"{label} → {text}"
    figures.append(
      f'<figure><div class="row">{"".join(parts)}</div>'
      f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )
  kind = "pictures three" if mistakes else "pictures"
  return f'<div class="{kind}">{"".join(figures)}</div>'


def image(pixels: np.ndarray, alt: str, kind: str = "") -> str:
  """Returns a picture, uint8 [h, w, c], that is in the page itself."""
  buffer, name = io.BytesIO(), "png"
  picture = Image.fromarray(
    pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
  )
  if not kind and min(picture.size) >= _PHOTOGRAPH:
    name = "jpeg"
    picture.save(buffer, name, quality=85)
  else:
    kind = kind or "small"
    picture.save(buffer, name, optimize=True)
  data = base64.b64encode(buffer.getvalue()).decode()
  width, height = picture.size
  return (
    f'<img class="{kind}" alt="{html.escape(alt)}" title="{html.escape(alt)}" '
    f'width="{width}" height="{height}" src="data:image/{name};base64,{data}">'
  )


def network(stages: Sequence[Stage]) -> str:
  """Returns a drawing of a network: its blocks with their skips, by stage."""
  parts = []
  for stage in stages:
    size = f"{stage.parameters:,}"
    if stage.shape:  # The head has no map.
      size = f"{'x'.join(map(str, stage.shape))}<br>{size}"
    blocks = _blocks(stage) if stage.blocks else ""
    parts.append(
      f'<figure class="stage"><b>{html.escape(stage.name)}</b>{blocks}'
      f"<figcaption>{size}</figcaption></figure>"
    )
  inside = '<span class="arrow">→</span>'.join(parts)
  return f'<div class="stages">{inside}</div>' + note(
    Text(
      "Height x width x channels of the map after each part, and its "
      "parameters. An arc is a skip: whole where x itself is added, dashed "
      "where a 1x1 convolution makes it fit.",
      "각 부분 뒤의 맵의 높이 x 너비 x 채널과 매개변수의 수. 호는 스킵이다: "
      "x 자체를 더하면 실선, 1x1 합성곱으로 모양을 맞추면 점선.",
    )
  )


def _blocks(stage: Stage) -> str:
  shown = min(stage.blocks, _MOST_BLOCKS)
  more = stage.blocks - shown
  width = 26 * shown + 6 + (34 if more else 0)
  drawn = []
  for n in range(shown):
    x = 6 + 26 * n
    kind = stage.first_skip if n == 0 else stage.skip
    drawn.append(
      f'<rect x="{x}" y="24" width="18" height="18" rx="3" '
      'fill="var(--c2)" opacity="0.75"/>'
    )
    drawn.append(
      f'<line x1="{x - 6}" x2="{x}" y1="33" y2="33" stroke="var(--soft)"/>'
    )
    if kind != "none":
      dash = ' stroke-dasharray="3 2"' if kind == "projection" else ""
      drawn.append(
        f'<path d="M{x - 4},33 C{x - 4},4 {x + 22},4 {x + 22},33" fill="none" '
        f'stroke="var(--c0)" stroke-width="1.8"{dash}/>'
      )
  end = 6 + 26 * shown
  drawn.append(
    f'<line x1="{end - 8}" x2="{end}" y1="33" y2="33" stroke="var(--soft)"/>'
  )
  if more:
    drawn.append(
      f'<text x="{end + 2}" y="37" font-size="12" fill="var(--soft)">'
      f"+{more:,}</text>"
    )
  return (
    f'<svg width="{width}" height="48" viewBox="0 0 {width} 48" '
    f'role="img" aria-label="{stage.blocks} blocks">{"".join(drawn)}</svg>'
  )
