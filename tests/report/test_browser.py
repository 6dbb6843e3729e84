"""The page in a browser: no error, every picture, at both widths."""

import html
import json
import re
import shutil
import subprocess

import pytest

from flax_resnet.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Opens the page in a frame of a width, as no window is as narrow as a phone.
HARNESS = """<!doctype html><meta charset="utf-8"><title>waiting</title>
<iframe id="frame" src="report.html" style="border:0" width="WIDTH"
height="900"></iframe><script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => setTimeout(() => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const shown = (language) =>
    [...page.querySelectorAll(`span[lang=${language}]`)]
      .filter((span) => span.offsetParent !== null).length;
  const root = page.documentElement;
  const result = {
    overflow: root.scrollWidth - root.clientWidth,
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
    images: page.images.length,
    charts: [...page.querySelectorAll(".chart")].map((chart) =>
      [chart.id, chart.querySelectorAll("path").length,
       chart.scrollWidth - chart.clientWidth]),
    en: [shown("en"), shown("ko")],
  };
  const svg = page.querySelector("#curve-top1 svg");
  const box = svg.getBoundingClientRect();
  const point = (kind, share) => svg.dispatchEvent(new view.PointerEvent(kind, {
    clientX: box.left + share * box.width, clientY: box.top + 50, bubbles: true,
  }));
  point("pointermove", 0.97);
  result.tip = page.querySelector("#curve-top1 .tip").innerText;
  point("pointerdown", 0.5);
  point("pointermove", 0.7);
  point("pointerup", 0.9);
  result.zoomed = page.querySelectorAll("#curve-top1 .legend button").length;
  svg.dispatchEvent(new view.MouseEvent("dblclick"));
  result.whole = page.querySelectorAll("#curve-top1 .legend button").length;
  page.getElementById("language").click();
  result.ko = [shown("en"), shown("ko")];
  const background = () => view.getComputedStyle(page.body).backgroundColor;
  const before = background();
  page.getElementById("theme").click();
  result.themed = before !== background();
  document.title = JSON.stringify(result);
}, 300));
</script>"""


@pytest.fixture(scope="module")
def browser():
  found = next(filter(None, map(shutil.which, BROWSERS)), None)
  if found is None:
    pytest.skip(f"there is none of {', '.join(BROWSERS)}: apt install chromium")
  return found


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
  """A folder with the page of three runs."""
  path = tmp_path_factory.mktemp("page")
  workdirs = [runs / name for name in ("seed0", "seed1", "plain")]
  page.write_report(workdirs, path / "report.html")
  return path


@pytest.mark.deep
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_in_a_browser(browser, folder, width):
  harness = folder / f"harness{width}.html"
  harness.write_text(HARNESS.replace("WIDTH", str(width)))
  result = subprocess.run(
    [
      *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
      *("--allow-file-access-from-files", "--enable-logging=stderr"),
      *("--virtual-time-budget=5000", "--window-size=1500,1000"),
      f"--user-data-dir={folder / 'profile'}",
      harness.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert "CONSOLE" not in result.stderr, result.stderr
  title = re.search("<title>(.*?)</title>", result.stdout)
  assert title and title[1] != "waiting", result.stderr
  found = json.loads(html.unescape(title[1]))
  assert found["overflow"] <= 0
  assert (found["broken"], found["images"] > 10) == (0, True)
  assert len(found["charts"]) == 8
  for name, paths, overflow in found["charts"]:
    assert (paths > 0, overflow <= 0) == (True, True), name
  assert found["tip"].startswith("step 4")
  rows = (folder / "report.html").read_text()
  value = re.search(r"plain, evaluation (0\.\d+)", found["tip"])
  assert value and f"[4, {value[1]}]" in rows
  assert (found["zoomed"], found["whole"]) == (1, 0)
  (en, none), (nor, ko) = found["en"], found["ko"]
  assert (none, nor) == (0, 0)
  assert en == ko > 20
  assert found["themed"]
