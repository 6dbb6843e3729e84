"""The page of one or several runs: a file without a network."""

from collections.abc import Mapping, Sequence
import html
import pathlib
import platform
import time
from typing import Any

import jax

import flax_resnet
from flax_resnet import storage
from flax_resnet.errors import InputError
from flax_resnet.report import charts, markup
from flax_resnet.report.charts import Chart
from flax_resnet.report.measure import measure, Measured
from flax_resnet.report.sections import SECTIONS
from flax_resnet.report.sentences import Text

_FOLDER = pathlib.Path(__file__).parent


def write_report(
  workdirs: Sequence[pathlib.Path], out: pathlib.Path
) -> list[str]:
  """Measures runs and writes their page; no other file is touched.

  Args:
    workdirs: folders of the runs.
    out: file of the page, which is replaced.

  Returns:
    Sentences on what is missing on the page.

  Raises:
    InputError: if one is not a run, or there is nothing of it to show, or the
      page cannot be written.
  """
  if not out.absolute().parent.is_dir():
    raise InputError(f"{out.parent} is not a folder: make it first")
  if out.is_dir():
    raise InputError(f"{out} is a folder: give a file")
  for workdir in workdirs:
    storage.read_config(workdir)  # All, before the first is measured.
  names = _names(workdirs)
  runs = [measure(*pair) for pair in zip(names, workdirs, strict=True)]
  with storage.replacing(out) as partial:
    partial.write_text(render(runs), encoding="utf-8")
  return [
    problem if len(runs) == 1 else f"{run.name}: {problem}"
    for run in runs
    for problem in run.problems
  ]


def _names(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """Returns names of runs; more of their paths where names are alike."""
  paths = [workdir.resolve() for workdir in workdirs]
  names = [path.name for path in paths]
  if len(set(names)) < len(names):
    names = ["/".join(path.parts[-2:]) for path in paths]
  return names


def render(runs: Sequence[Measured]) -> str:
  """Returns the page of runs.

  Args:
    runs: what was measured of each, one at least.
  """
  groups = charts.group(runs)
  drawn: list[Chart] = []
  body = "".join(part for make in SECTIONS for part in make(groups, drawn))
  title = ", ".join(one.name for one in groups)
  data = storage.to_json(_plain(drawn)).replace("<", "\\u003c")
  style, script = (
    (_FOLDER / name).read_text(encoding="utf-8")
    for name in ("page.css", "page.js")
  )
  about = html.escape(
    f"flax_resnet {flax_resnet.__version__}, JAX {jax.__version__}, "
    f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, "
    f"{jax.local_devices()[0].device_kind}"
  )
  made = markup.both(Text("Measured and drawn by", "측정하고 그린 환경:"))
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{html.escape(title)}</h1>
<button id="language" type="button">한국어 / English</button>
<button id="theme" type="button">◐</button>
</header>
<noscript>The curves need JavaScript.</noscript>
{body}
<footer>{made} {about}</footer>
</main>
<script id="data" type="application/json">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _plain(value: Any) -> Any:
  """Returns values with each text by its language."""
  if isinstance(value, Text):
    return value._asdict()
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(each) for each in value]
  return value
