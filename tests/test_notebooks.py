"""The notebooks run, shortened; what is committed has outputs and no errors."""

import base64
import io
import json

import jax
import matplotlib
import matplotlib.pyplot as plt
from PIL import Image
import pytest

from tests.recipes import ROOT

ENGLISH = ROOT / "examples" / "why_resnets_work.ipynb"
KOREAN = ROOT / "examples" / "why_resnets_work.ko.ipynb"
# Fewer blocks and steps.
SHORT = {"DEPTH = 16": "DEPTH = 3", "STEPS = 120": "STEPS = 3"}


def cells(notebook, kind):
  return [
    cell
    for cell in json.loads(notebook.read_text())["cells"]
    if cell["cell_type"] == kind
  ]


def code(notebook):
  return ["".join(cell["source"]) for cell in cells(notebook, "code")]


def prose(notebook):
  return ["".join(cell["source"]) for cell in cells(notebook, "markdown")]


@pytest.mark.deep
def test_a_notebook_runs_from_top_to_bottom(capsys):
  names, pictures = {}, 0
  with (
    jax.numpy_rank_promotion("allow"),  # As in a project of one's own.
    matplotlib.rc_context({"backend": "agg"}),
  ):
    for text in code(ENGLISH):
      for whole, short in SHORT.items():
        text = text.replace(whole, short)
      exec(compile(text, ENGLISH.name, "exec"), names)
      pictures += len(plt.get_fignums())
      plt.close("all")  # A cell ends, and shows them.
  assert pictures == 4
  assert (names["DEPTH"], names["STEPS"]) == (3, 3)
  out = capsys.readouterr().out
  assert "less that of F, is the identity: True" in out
  assert "of the block: 1 where its ReLU is open, else 0: True" in out
  assert "(8, 16) the same: True" in out  # The matrix of a 1x1 convolution.
  assert "intact 98.1%" in out


@pytest.mark.parametrize("notebook", [ENGLISH, KOREAN], ids=lambda x: x.name)
def test_committed_outputs_are_whole(notebook):
  assert notebook.stat().st_size <= 600_000
  numbers, pictures = [], 0
  for cell in cells(notebook, "code"):
    numbers.append(cell["execution_count"])
    for output in cell["outputs"]:
      assert output["output_type"] in ("stream", "display_data"), output
      assert output.get("name") != "stderr", output
      if "data" in output:
        png = base64.b64decode(output["data"]["image/png"])
        assert Image.open(io.BytesIO(png)).width > 300
        pictures += 1
  assert numbers == list(range(1, len(numbers) + 1))
  assert pictures == 4


def test_both_languages_have_the_same_code_and_headings():
  assert code(KOREAN) == code(ENGLISH)
  assert len(prose(KOREAN)) == len(prose(ENGLISH))
  for ours, theirs in zip(prose(ENGLISH), prose(KOREAN), strict=True):
    assert ours[:5].count("#") == theirs[:5].count("#")
