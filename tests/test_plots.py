"""Curves are drawn, and their labels say what could not be."""

import math
import re

from PIL import Image
import pytest

from flax_resnet import plots
from flax_resnet.insight import pictures
from tests.svg import texts


def rows(**changes):
  """Returns ten rows of a run; the changed columns are lists."""
  return [
    {
      "step": step,
      "train/loss": 2.0 / step,
      "train/top1": 0.5,
      "learning_rate": 0.1,
      "val/loss": 1.0,
      "val/top1": step / 100,
      **{key: values[step - 1] for key, values in changes.items()},
    }
    for step in range(1, 11)
  ]


def test_training_curves_are_a_picture(tmp_path):
  plots.training_curves(rows(), "a net on a set", tmp_path / "curves.png")
  picture = Image.open(tmp_path / "curves.png").convert("RGB")
  assert picture.width > 1000
  colors = {color for _, color in picture.getcolors(1 << 24)}
  assert (0xC8, 0x44, 0x2C) in colors  # The evaluation was drawn.
  assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
  ("first_bad", "gaps"), [(0, "not finite"), (5, "5 of 10 not finite")]
)
def test_training_curves_say_what_is_not_finite(tmp_path, first_bad, gaps):
  loss = [1.0] * first_bad + [math.nan] * (10 - first_bad)
  path = tmp_path / "curves.svg"
  plots.training_curves(rows(**{"train/loss": loss}), "a net on a set", path)
  assert f"training, as optimised ({gaps})" in texts(path)
  assert "evaluation" in texts(path)


def test_losses_of_many_magnitudes_have_ticks(tmp_path):
  path = tmp_path / "curves.svg"
  loss = {"train/loss": [7e21] + [1.0] * 9}
  plots.training_curves(rows(**loss), "a net on a set", path)
  ticks = [text for text in texts(path) if re.fullmatch(r"1e\+\d\d", text)]
  assert len(ticks) >= 3


def test_a_label_says_what_a_logarithmic_axis_lacks():
  values = [0.0, math.nan, 1.0, 0.0]
  assert plots.label_with_gaps("a", values) == "a (1 of 4 not finite)"
  assert plots.label_with_gaps("a", values, log=True) == (
    "a (1 of 4 not finite, 2 of 4 zero)"
  )
  assert plots.label_with_gaps("a", [0.0], log=True) == "a (zero)"
  assert plots.label_with_gaps("a", [1.0], log=True) == "a"


def test_every_block_has_its_number(tmp_path):
  """Also where the last ones of a curve have no value."""
  (_, svg) = plots.residuals(
    {"a": [1.0, 2.0, None, None]},
    {"a": [0.5, 0.5, None, None]},
    {"a": {}},
    "a net on a set",
    tmp_path / "residuals",
  )
  assert "a (2 of 4 not finite)" in texts(svg)
  assert "4" in texts(svg)


@pytest.mark.parametrize("highest", [3.0, 1e9])
def test_logarithmic_ticks_are_numbers_and_no_formulas(tmp_path, highest):
  (_, svg) = pictures.path_lengths(
    {"a": [1.0, highest]},
    {"a": [0.5, 0.5]},
    {"a": {}},
    "A title",
    tmp_path / "paths",
  )
  assert "1" in texts(svg)
  assert not [text for text in texts(svg) if "mathdefault" in text]
