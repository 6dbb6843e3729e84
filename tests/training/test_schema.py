from collections.abc import Sequence
from typing import Literal

import pytest

from flax_resnet.training import InputError, load_recipe
from flax_resnet.training.schema import build
from tests.recipes import ROOT

Finish = Literal["matt", "glossy"]


def paint(
  canvas: str,
  *,
  colour: Literal["red", "blue"],
  width: float,
  height: int | None,
  corners: Sequence[float] = (),
  depth: float | None = None,
  finish: Finish | None = None,
) -> tuple:
  del depth, finish
  if width < 0:
    raise ValueError(f"width is {width}: use 0 or more")
  return canvas, colour, width, height, corners


GOOD = {"colour": "red", "width": 2, "height": None}


def test_a_section_becomes_the_arguments_of_its_function():
  assert build("config.paint", paint, GOOD, canvas="c") == (
    "c",
    "red",
    2,
    None,
    (),
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"colur": "red"}, "config.paint.colur is unknown: did you mean 'colour'?"),
    ({"zzz": 1}, "config.paint.zzz is unknown: use colour, width, height"),
    ({"canvas": "d"}, "config.paint.canvas is unknown"),
    ({"colour": "green"}, "is 'green': use one of 'red', 'blue'"),
    ({"width": "wide"}, "config.paint.width is 'wide': use float"),
    ({"width": True}, "config.paint.width is True: use float"),
    ({"height": 1.5}, "config.paint.height is 1.5: use int or None"),
    ({"height": True}, "config.paint.height is True: use int or None"),
    ({"depth": True}, "config.paint.depth is True: use float or None"),
    (
      {"finish": "gloss"},
      "finish is 'gloss': use one of 'matt', 'glossy' or None",
    ),
    ({"corners": ("a",)}, r"corners is \('a',\): use a tuple of float"),
    ({"corners": (0.5,) * 20 + ("a",)}, "use a tuple of float"),
    ({"corners": 0.5}, "corners is 0.5: use a tuple of float"),
    ({"width": -1.0}, "config.paint: width is -1.0: use 0 or more"),
  ],
)
def test_what_does_not_fit_the_signature_is_told(changes, message):
  with pytest.raises(InputError, match=message):
    build("config.paint", paint, GOOD | changes, canvas="c")


def test_a_missing_key_is_told():
  with pytest.raises(InputError, match="config.paint.width is missing"):
    build("config.paint", paint, {"colour": "red", "height": 1}, canvas="c")


def test_overrides_take_the_type_that_they_spell():
  config = load_recipe(
    ROOT / "configs/digits.py",
    [
      "optim.learning_rate=1e-2",
      "augment.mean=(0.5,)",
      "model.norm_group_size=32",
      "data.data_dir=/a/b",
      "augment.flip=True",
    ],
  )
  assert config.optim.learning_rate == 0.01
  assert config.augment.mean == (0.5,)
  assert config.model.norm_group_size == 32
  assert config.data.data_dir == "/a/b"
  assert config.augment.flip is True


@pytest.mark.parametrize(
  ("override", "steps", "epochs"),
  [("num_steps=7", 7, None), ("num_epochs=3", None, 3), ("seed=1", ..., ...)],
)
def test_a_length_on_the_command_line_replaces_that_of_the_file(
  override, steps, epochs
):
  for recipe in ("digits", "imagenet_resnet50"):
    path = ROOT / f"configs/{recipe}.py"
    plain, config = load_recipe(path), load_recipe(path, [override])
    for key, wanted in (("num_steps", steps), ("num_epochs", epochs)):
      assert config[key] == (plain[key] if wanted is ... else wanted)
