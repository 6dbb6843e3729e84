"""Names of any language are drawn, or numbered."""

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
import numpy as np
import pytest

from flax_resnet import fonts, plots
from tests.svg import texts


def write_font(path, characters):
  """Writes a font in which these characters are squares."""
  pen = TTGlyphPen(None)
  corners = ((100, 0), (100, 700), (800, 700), (800, 0))
  pen.moveTo(corners[0])
  for corner in corners[1:]:
    pen.lineTo(corner)
  pen.closePath()
  names = [".notdef", *(f"uni{ord(c):04X}" for c in characters)]
  font = FontBuilder(1000)
  font.setupGlyphOrder(names)
  font.setupCharacterMap(
    dict(zip(map(ord, characters), names[1:], strict=True))
  )
  font.setupGlyf(dict.fromkeys(names, pen.glyph()))
  font.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
  font.setupHorizontalHeader(ascent=800, descent=-200)
  font.setupNameTable(
    {"familyName": "Squares", "styleName": "Regular", "psName": "Squares"}
  )
  font.setupOS2()
  font.setupPost()
  font.save(path)


@pytest.fixture
def installed(monkeypatch):
  """Sets the fonts that are installed and that matplotlib has not seen yet."""
  manager = font_manager.fontManager
  before = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
  monkeypatch.setattr(manager, "ttflist", before)

  def install(*paths):
    monkeypatch.setattr(
      font_manager, "findSystemFonts", lambda: list(map(str, paths))
    )
    fonts._installed.cache_clear()

  install()
  yield install
  fonts._installed.cache_clear()


def draw(names, path, title="a title"):
  counts = np.array([[5, 1], [1, 5]])
  accuracy = np.array([0.8, 0.8])
  (_, svg) = plots.confusion_matrix(counts, accuracy, names, title, path)
  return svg


def test_a_font_that_has_the_characters_is_found(installed, tmp_path):
  (tmp_path / "broken.ttf").write_bytes(b"no font")
  write_font(tmp_path / "squares.ttf", "튤립")
  installed(tmp_path / "broken.ttf", tmp_path / "squares.ttf")
  names = ["튤립", "rose"]
  assert fonts.drawable_names(names) == names
  svg = draw(names, tmp_path / "picture", "of 튤립")
  assert {"튤립", "rose", "of 튤립"} <= set(texts(svg))
  assert 'id="Squares-' in svg.read_text()


def test_names_that_no_font_has_are_numbered(installed, tmp_path):
  with pytest.warns(UserWarning) as warned:
    names = fonts.drawable_names(["튤립", "rose"])
  assert names == ["0", "1"]
  (warning,) = warned
  assert str(warning.message) == (
    "no installed font has '립튤': pictures have the numbers of the classes (0 "
    "튤립, 1 rose); for their names install one, such as Noto Sans CJK (apt "
    "install fonts-noto-cjk)"
  )
  # Other texts are drawn without matplotlib's warning for each character.
  svg = draw(names, tmp_path / "picture", "of 튤립")
  assert "of \ufffd\ufffd" in texts(svg)


def test_a_name_is_no_formula(installed, tmp_path):
  name = r"$\nosuchmacro$"
  assert fonts.drawable_names([name, "وردة"]) == [name, "وردة"]
  assert name in texts(draw([name, "وردة"], tmp_path / "picture"))
