"""Signatures as the schema of a recipe."""

from collections.abc import Sequence
import dataclasses
import functools
import inspect
import math
import types
from typing import Annotated, Literal

import numpy as np
import pytest

from flax_resnet import recipes, schema
from flax_resnet.augment import make_augment
from flax_resnet.data.dataset import SECTION
from flax_resnet.errors import InputError
from flax_resnet.recipes import load_recipe, override
from flax_resnet.schema import (
  arguments,
  build,
  check_fields,
  Count,
  height_and_width,
  ImageSize,
  Positive,
  Range,
  Rate,
  Share,
)
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optimizers import make_optimizer
from flax_resnet.training.setup import Recipe
from tests.recipes import ROOT

Finish = Literal["matt", "glossy"]


def paint(
  canvas: str,
  *,
  color: Literal["red", "blue"],
  width: float,
  height: int | None,
  corners: Sequence[float] = (),
  depth: Positive | None = None,
  finish: Finish | None = None,
  layers: Count = 1,
  gloss: Share = 0.5,
  shades: Sequence[Rate] = (),
  frame: ImageSize | None = None,
) -> dict:
  if width > 100:
    raise ValueError(f"width is {width}: use less for this canvas")
  del finish
  return {k: v for k, v in locals().items() if k != "finish"}


GOOD = {"color": "red", "width": 2, "height": None}


def test_a_section_becomes_the_arguments_of_its_function():
  found = build("config.paint", paint, GOOD | {"corners": [1]}, canvas="c")
  assert found["canvas"] == "c"
  assert found["color"] == "red"
  # An int where a float is wanted is made one: JAX takes ints for int32.
  assert type(found["width"]) is float
  assert found["corners"] == (1.0,)
  assert type(found["corners"][0]) is float
  assert found["gloss"] == 0.5


def hang(nail: str, *, color: str = "red", high: bool = False) -> None: ...


def test_a_section_of_two_functions_is_divided():
  section = GOOD | {"high": True}
  painted, hung = arguments(
    "config.wall", section, paint, hang, given=("canvas", "nail")
  )
  assert painted == GOOD
  assert hung == {"color": "red", "high": True}
  with pytest.raises(InputError, match="config.wall.canvas is unknown"):
    arguments(
      "config.wall", GOOD | {"canvas": "c"}, paint, hang, given=("canvas",)
    )


# What is wrong with a section, and the sentence on it.
WRONG = [
  ({"colr": "red"}, "config.paint.colr is unknown: did you mean 'color'?"),
  ({"zzz": 1}, "config.paint.zzz is unknown: use color, width, height, "),
  ({"canvas": "d"}, "config.paint.canvas is unknown: "),
  ({"color": "green"}, "config.paint.color is 'green': use one of 'red', "),
  ({"width": "wide"}, "config.paint.width is 'wide': use float"),
  ({"width": None}, "config.paint.width is None: use float"),
  ({"width": math.inf}, "config.paint.width is inf: use finite numbers"),
  ({"width": math.nan}, "config.paint.width is nan: use finite numbers"),
  ({"width": 101}, "config.paint: width is 101.0: use less for this canvas"),
  ({"height": True}, "config.paint.height is True: use int or None"),
  ({"height": 2**63}, f"use numbers below {2**63}"),
  ({"depth": True}, "config.paint.depth is True: use float, more than 0 or"),
  ({"depth": 0.0}, "config.paint.depth is 0.0: use more than 0 or None"),
  ({"finish": "gloss"}, "use one of 'matt', 'glossy' or None"),
  ({"layers": 0}, "config.paint.layers is 0: use 1 or more"),
  ({"layers": 1.0}, "config.paint.layers is 1.0: use int, 1 or more"),
  ({"layers": 10**400}, f"use numbers below {2**63}"),
  ({"gloss": 1.1}, "config.paint.gloss is 1.1: use 0 to 1"),
  ({"corners": ("a",)}, "corners is ('a',): use a tuple of float"),
  ({"corners": 0.5}, "corners is 0.5: use a tuple of float"),
  ({"gloss": -0.1}, "config.paint.gloss is -0.1: use 0 to 1"),
  ({"shades": (0.5, 1.0)}, "use a tuple of float, 0 or more, less than 1"),
  ({"frame": 0}, "frame is 0: use 1 to 9,459 or (height, width) of such or "),
  ({"frame": "3,4"}, "frame is '3,4': use int, 1 to 9,459 or (height, width)"),
  ({"frame": (3,)}, "frame is (3,): use 1 to 9,459 or (height, width) of such"),
  ({"frame": (3, 4, 5)}, "frame is (3, 4, 5): use 1 to 9,459 or (height,"),
  ({"frame": (3, 0)}, "frame is (3, 0): use int, 1 to 9,459 or (height, "),
  ({"frame": (3, 4.5)}, "frame is (3, 4.5): use int, 1 to 9,459 or (height, "),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_does_not_fit_the_signature_is_refused(changes, message):
  with pytest.raises(InputError) as error:
    build("config.paint", paint, GOOD | changes, canvas="c")
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("size", "expected"), [(5, (5, 5)), ((3, 4), (3, 4)), ([3, 4], (3, 4))]
)
def test_a_size_is_one_number_or_both(size, expected):
  """As JSON has it, too."""
  found = build("config.paint", paint, GOOD | {"frame": size}, canvas="c")
  assert found["frame"] == size
  assert height_and_width(size) == expected


def test_a_missing_key_is_refused():
  with pytest.raises(InputError, match="config.paint.width is missing"):
    build("config.paint", paint, {"color": "red", "height": 1}, canvas="c")


@dataclasses.dataclass
class Frame:
  width: Annotated[float, Range(above=0)]
  sides: int = 4
  dtype: Annotated[type | str, "float32 or float64"] = "float32"


def test_fields_are_checked_as_sections_are():
  check_fields(Frame(1.0))
  check_fields(Frame(np.float32(1.0), np.int64(4)))
  with pytest.raises(ValueError, match="width is 0.0: use more than 0"):
    check_fields(Frame(0.0))
  with pytest.raises(ValueError, match="sides is 'four': use int"):
    check_fields(Frame(1.0, "four"))
  with pytest.raises(ValueError, match="dtype is 3: use float32 or float64"):
    check_fields(Frame(1.0, dtype=3))


def test_a_function_may_take_the_fields_of_a_class():
  def make(name: str, **fields: object) -> tuple[str, Frame]:
    return name, Frame(**{"width": 1.0} | fields)

  frame = functools.partial(build, "config.frame", make, fields_of=Frame)
  assert frame({"name": "a"}) == ("a", Frame(1.0))
  assert frame({"name": "a", "width": 2}) == ("a", Frame(2.0))
  with pytest.raises(InputError, match="frame.width is 0: use more than 0"):
    frame({"name": "a", "width": 0})
  with pytest.raises(InputError, match="frame.sdes is unknown.*'sides'"):
    frame({"name": "a", "sdes": 3})


def test_help_shows_the_bounds_that_a_range_has():
  assert repr(Range(minimum=0, below=1)) == "Range(minimum=0, below=1)"


def test_overrides_take_the_type_that_they_spell():
  config = load_recipe(
    ROOT / "configs/digits.py",
    [
      "optim.learning_rate=1e-2",
      "augment.mean=(0.5,)",
      "model.norm_group_size=32",
      "data.data_dir=/a/b",
      "augment.flip=True",
      "loss.name=binary_cross_entropy",  # The recipe leaves it at its default.
    ],
  )
  assert config.optim.learning_rate == 0.01
  assert config.augment.mean == (0.5,)
  assert config.model.norm_group_size == 32
  assert config.data.data_dir == "/a/b"
  assert config.augment.flip is True
  assert config.loss.name == "binary_cross_entropy"


@pytest.mark.parametrize(
  ("text", "steps", "epochs"),
  [("num_steps=7", 7, None), ("num_epochs=3", None, 3), ("seed=1", ..., ...)],
)
def test_a_length_on_the_command_line_replaces_that_of_the_file(
  text, steps, epochs
):
  for recipe in ("digits", "imagenet_resnet50"):
    path = ROOT / f"configs/{recipe}.py"
    plain, config = load_recipe(path), load_recipe(path, [text])
    for key, wanted in (("num_steps", steps), ("num_epochs", epochs)):
      found = config.get(key)
      assert found == (plain.get(key) if wanted is ... else wanted)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("seed", "--config.seed has no value"),
    ("modl.name=x", "config.modl is unknown: did you mean 'model'?"),
    ("seed.x=1", "config.seed has no keys"),
    ("model=1", "config.model is a section: set one of its keys, name"),
  ],
)
def test_an_override_that_cannot_be_is_refused(text, message):
  with pytest.raises(InputError) as error:
    override({"seed": 0, "model": {"name": "resnet50"}}, [text])
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("raise KeyError('oops')", "fails with KeyError: 'oops'"),
    ("get_config = lambda: 3", "does not return a ConfigDict"),
    ("x = (", "fails with SyntaxError: "),
  ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, code, message):
  (tmp_path / "recipe.py").write_text(code)
  with pytest.raises(InputError) as error:
    load_recipe(tmp_path / "recipe.py")
  assert message in str(error.value)
  with pytest.raises(InputError, match="is not there"):
    load_recipe(tmp_path / "other.py")


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("data.root=2024_05_01", "2024_05_01"),
    ("data.root=12", "12"),
    ("data.root='12'", "12"),
    ("data.root=None", None),
    ("data.name=[a]", "[a]"),
    ("data.data_dir=1e5", "1e5"),
    ("init_from=07", "07"),
    ("num_steps=10_000", 10_000),
    ("data.scale=0.5", 0.5),
  ],
)
def test_a_key_of_text_takes_a_number_as_text(text, value):
  config = {"num_steps": 1, "init_from": None, "data": {"name": "folder"}}
  path = text.partition("=")[0].split(".")
  assert (
    functools.reduce(dict.get, path, override(config, [text]).to_dict())
    == value
  )


def test_keys_of_text_that_may_be_left_out_are_known():
  functions = [Recipe, *SECTION, make_augment, make_loss, make_optimizer]
  found = {
    key
    for function in functions
    for key, parameter in inspect.signature(function).parameters.items()
    if [kind for kind, _ in schema._options(parameter.annotation)]
    in ([str], [str, types.NoneType])
    and parameter.default is not parameter.empty
  }
  assert found == set(recipes._TEXT)


@pytest.mark.parametrize(
  ("schemes", "text", "fits"),
  [
    ((), "a/b", True),
    ((), "hf-hub:a/b", True),
    ((), "C:/a", True),
    ((), "a b://c", True),  # No scheme has a space.
    ((), "gs://a", False),
    (("gs",), "gs://a", True),
    (("gs",), "GS://a", False),
    (("gs",), "gs+x://a", False),
  ],
)
def test_urls_are_taken_by_their_schemes(schemes, text, fits):
  location = schema.Location(schemes)
  assert (text in location) == fits
  annotation = Annotated[str, location] | None
  wanted = " or ".join(
    ["a path of this machine", *(f"{s}://" for s in schemes), "None"]
  )
  assert schema._wanted(text, annotation) == ("" if fits else wanted)
  assert schema._wanted(None, annotation) == ""
  assert schema._wanted(3, annotation)
