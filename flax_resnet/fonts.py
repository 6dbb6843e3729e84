"""Fonts with the characters of a picture: class names are of any language.

matplotlib draws a character in the first font of a text's families that has it,
and an empty box where none has.
"""

from collections.abc import Sequence
import functools
from typing import Any
import warnings

from etils import epy

from flax_resnet.errors import listing

with epy.lazy_imports():  # Slow to import, and only the end of a run draws.
  from matplotlib import font_manager
  from matplotlib import text as texts

# Fonts that have a box for every character there is.
_BOXES = ("Last Resort", "LastResort", ".LastResort", "Adobe Blank")


def drawable_names(names: Sequence[str]) -> list[str]:
  """Returns names of classes, or their numbers if no font has the characters.

  One line has the names by their numbers then, and says how to get a font.
  """
  _, missing = _families("".join(names))
  if not missing:
    return list(names)
  legend = (f"{number} {name}" for number, name in enumerate(names))
  warnings.warn(
    f"no installed font has {''.join(sorted(missing)[:20])!r}: pictures have "
    f"the numbers of the classes ({listing(legend, 20)}); for their names "
    "install one, such as Noto Sans CJK (apt install fonts-noto-cjk)",
    stacklevel=2,
  )
  return [str(number) for number in range(len(names))]


def set_families(figure: Any) -> None:
  """Gives the texts of a figure fonts that have their characters.

  Nor is a text taken for a formula, whatever is in it. What no font has becomes
  U+FFFD.
  """
  for text in figure.findobj(texts.Text):
    text.set_parse_math(False)
    families, missing = _families(text.get_text())
    text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing:
      drawn = dict.fromkeys(map(ord, missing), "\N{REPLACEMENT CHARACTER}")
      text.set_text(text.get_text().translate(drawn))


def _families(text: str) -> tuple[list[str], set[str]]:
  """Returns fonts beside the default for a text, and what none of them has."""
  default = font_manager.findfont(font_manager.FontProperties())
  seen = {c for c in text if c.isprintable() and not c.isspace()}
  missing = seen - _characters(default)
  families = []
  while missing:
    fonts = _installed()
    found = max(fonts, key=lambda name: len(missing & _characters(fonts[name])))
    covered = missing & _characters(fonts[found])
    if not covered:
      break
    families.append(found)
    missing -= covered
  return families, missing


@functools.cache
def _installed() -> dict[str, str]:
  """Returns the files of the installed fonts by their families."""
  manager = font_manager.fontManager
  known = {entry.fname for entry in manager.ttflist}
  for path in font_manager.findSystemFonts():
    if path not in known:  # matplotlib has a list of its own, of earlier.
      try:
        manager.addfont(path)
      except Exception:  # FreeType's errors: some fonts cannot be read.
        continue
  entries = sorted(manager.ttflist, key=lambda e: (e.name, e.weight != 400))
  files = {}
  for entry in entries:
    if not entry.name.startswith(_BOXES):
      files.setdefault(entry.name, entry.fname)
  return files


@functools.cache
def _characters(path: str) -> frozenset[str]:
  """Returns the characters of a font; none of one that cannot be drawn with."""
  try:
    font = font_manager.get_font(path)
  except Exception:  # FreeType's errors: some fonts cannot be read.
    return frozenset()
  if not font.scalable:  # A font of pictures.
    return frozenset()
  return frozenset(map(chr, font.get_charmap()))
