"""Pictures in tests."""

import pathlib
import re


def texts(path: pathlib.Path) -> list[str]:
  """Returns the texts of a whole SVG, which matplotlib notes in comments."""
  svg = path.read_text()
  assert svg.rstrip().endswith("</svg>")
  return re.findall("<!-- (.*?) -->", svg)
