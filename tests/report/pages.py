"""A page as it is read in tests: well-formed, with no address of another."""

import base64
from html.parser import HTMLParser
import io
import json
import pathlib
import re
from typing import Any

from PIL import Image

_VOID = {"meta", "link", "img", "br", "line", "rect", "path", "input", "hr"}


class _Reader(HTMLParser):
  """Checks that tags are closed in order, and notes addresses and ids."""

  def __init__(self):
    super().__init__()
    self.open, self.addresses, self.ids = [], [], []

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.addresses += [values[k] for k in ("src", "href") if k in values]
    self.ids += [values["id"]] if "id" in values else []
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag


def read(path: pathlib.Path) -> tuple[str, list[dict[str, Any]]]:
  """Returns the text of a sound page, and its charts."""
  text = path.read_text(encoding="utf-8")
  reader = _Reader()
  reader.feed(text)
  assert not reader.open
  assert len(set(reader.ids)) == len(reader.ids)
  for address in reader.addresses:
    kind, _, data = address.partition(",")
    assert kind.startswith("data:"), address
    if data:
      assert Image.open(io.BytesIO(base64.b64decode(data))).width
  assert (
    "nan"
    not in re.sub(r"base64,[^\"]*|<style>.*?</style>", "", text, flags=re.S)
    .lower()
    .split()
  )
  found = re.search(
    r'<script id="data" type="application/json">(.*?)</script>', text, re.S
  )
  charts = json.loads(found[1])
  assert {chart["id"] for chart in charts} <= set(reader.ids)
  # Each text is there in both languages.
  assert text.count('<span lang="en">') == text.count('<span lang="ko">') > 0
  return text, charts


def points(charts: list[dict[str, Any]], chart: str, name: str) -> list[Any]:
  """Returns the points of a series by its English name."""
  found = next(each for each in charts if each["id"] == chart)
  return next(s["points"] for s in found["series"] if s["name"]["en"] == name)
