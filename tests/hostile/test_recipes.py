"""Every key of every recipe misspelt, of every wrong type, out of all bounds.

The keys and their types are those of the signatures that `set_up` calls.
"""

import collections
from collections.abc import Sequence
import copy
import functools
import inspect
import math
import random
import re
import types
import typing

import jax
import pytest

from flax_resnet import sharding
from flax_resnet.augment import make_augment
from flax_resnet.data.dataset import SECTION
from flax_resnet.models import create_model, ResNet
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optimizers import make_optimizer
from flax_resnet.training.schedules import make_schedule
from flax_resnet.training.setup import Recipe, set_up
from tests.hostile.survival import survive
from tests.recipes import changed as with_values
from tests.recipes import on_synthetic_images, RECIPES

# The functions of the sections, and arguments that are no keys.
SECTIONS = {
  "": ([Recipe], {"model", "data", "augment", "loss", "optim"}),
  "model": ([create_model, ResNet], {"fields", "parent"}),
  "data": (
    SECTION,
    {
      *("part", "num_classes", "class_names", "columns", "source"),
      *("operations", "options", "num_channels", "interpolation", "fill"),
      *("before", "now"),
    },
  ),
  "augment": (
    [make_augment],
    {"channels", "num_classes", "batch_size", "dtype", "steps_per_epoch"},
  ),
  "loss": ([make_loss], {"multi_label"}),
  "optim": (
    [make_schedule, make_optimizer],
    {"num_steps", "batch_size", "rate", "block_names", "freezing"},
  ),
}
WRONG_TYPES = (
  *("x", 1, 1.5, True, None, {"x": 1}, ("x",), (1.5,), ((1,),), [None]),
)
NEVER = (math.nan, math.inf, -math.inf, 10**30, 10**400, -(10**400))
ODD = (-1, 0, -0.5, 0.5, 1.5, -1e308, 1e308, 5e-324, 10**6, 10**9, 10**12)

Case = collections.namedtuple("Case", "section key value wrong message")


@functools.cache
def good(path):
  """Returns a recipe on made-up images, thin and quick to set up."""
  config = with_values(on_synthetic_images(path), {"data.num_threads": 0})
  return config.to_dict()


def keys(section):
  functions, given = SECTIONS[section]
  found = {}
  for function in reversed(functions):  # `name` is that of `create_model`.
    found |= inspect.signature(function).parameters
  return {k: p.annotation for k, p in found.items() if k not in given}


def misspelt(key):
  """Returns a key with a letter less, one twice, and two that are swapped."""
  at = len(key) // 2
  yield key[:at] + key[at + 1 :]
  yield key[:at] + key[at] + key[at:]
  if key[at - 1] != key[at]:
    yield key[: at - 1] + key[at] + key[at - 1] + key[at + 1 :]


def kinds(annotation):
  """Returns the types that an annotation allows; an int is a float."""
  if typing.get_origin(annotation) is typing.Annotated:
    return kinds(typing.get_args(annotation)[0])
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return set().union(*map(kinds, typing.get_args(annotation)))
  origin = typing.get_origin(annotation) or annotation
  if origin is typing.Literal:
    return set(typing.get_args(annotation))
  return {float, int} if origin is float else {origin}


def cases(recipe):
  """Yields what is wrong with a recipe, or may be."""
  for section in SECTIONS:
    known = keys(section)
    for key, annotation in known.items():
      for name in misspelt(key):
        if name not in known:
          yield Case(section, name, None, True, re.escape(repr(key)))
      if key.endswith("dtype") or key == "block":
        continue  # Of types that are no plain ones.
      allowed = kinds(annotation)
      for value in WRONG_TYPES:
        wrong = type(value) not in allowed and Sequence not in allowed
        yield Case(section, key, value, wrong or value == ((1,),), "")
      if Sequence in allowed:
        now = recipe.get(section, {}).get(key) or (0.5, 0.5)
        now = (now, now) if isinstance(now, int) else now  # An image's size.
        for value in (*NEVER, *ODD, "x", None, True):
          wrong = value in NEVER or type(value) not in (int, float)
          yield Case(section, key, (value, *now[1:]), wrong, "")
        yield Case(section, key, (), False, "")
        yield Case(section, key, (0.5,) * 1000, False, "")
      if {int, float} & allowed:
        for value in (*NEVER, *ODD):
          yield Case(section, key, value, value in NEVER, "")
      if str in allowed:
        for value in ("", "\0", "x" * 10_000, "a\nb", "\ud800", "../.."):
          yield Case(section, key, value, False, "")


def changed(recipe, case):
  config = copy.deepcopy(recipe)
  section = config[case.section] if case.section else config
  section[case.key] = case.value
  if case.key in ("num_steps", "num_epochs") and case.value is not None:
    other = {"num_steps": "num_epochs", "num_epochs": "num_steps"}[case.key]
    config[other] = None
  return config


def use(config, mesh):
  """Does what a run does before it compiles, but for drawing parameters."""
  run = set_up(config, mesh)
  next(run.train_inputs(0))
  next(run.eval_batches())


def check(recipe, case, mesh):
  try:
    use(changed(recipe, case), mesh)
  except Exception as error:
    assert re.search(case.message, str(error)), (case, error)
    raise
  assert not case.wrong, f"{case} was not refused"


def fuzz(tmp_path, monkeypatch, chosen, mesh):
  monkeypatch.chdir(tmp_path)
  waiting = iter(chosen)

  def attempt(_):
    recipe, case = next(waiting)
    return lambda: check(recipe, case, mesh)

  survive(tmp_path, len(chosen), attempt)
  assert not list(tmp_path.iterdir())


@pytest.fixture
def one_device():
  return sharding.make_mesh(jax.devices()[:1])


def everything(path):
  return [(good(path), case) for case in cases(good(path))]


# What went wrong once: it filled the memory, took minutes, or was a traceback.
ONCE = [
  ("", "eval_batch_size", 10**12, False),
  ("", "num_steps", 10**12, True),
  ("", "steps_per_call", 10**12, False),
  ("model", "num_classes", 0, True),
  ("model", "num_classes", 10**12, True),
  ("model", "stage_sizes", (10**9,) * 4, True),
  ("model", "shortcut", "x" * 10_000, True),
  ("data", "image_size", 10**9, True),
  ("data", "eval_image_size", 10**9, True),
  ("data", "center_crop_fraction", 5e-324, True),
  ("data", "policy_num_ops", 10**9, False),
  ("data", "repeated_augmentation", 0, True),
  ("augment", "crop_padding", 10**12, True),
  ("augment", "mean", (1e308,) * 3, True),
  ("augment", "rotation", 10**12, False),
  ("augment", "mixup", 10**12, False),
  ("augment", "random_erasing", 1, False),
  ("optim", "learning_rate", 10**400, True),
]


def test_what_went_wrong_once(tmp_path, monkeypatch, one_device):
  for name in ("digits", "imagenet_rsb_a2"):
    recipe = good(next(path for path in RECIPES if path.stem == name))
    chosen = [(recipe, Case(*case, "")) for case in ONCE]
    fuzz(tmp_path, monkeypatch, chosen, one_device)


def test_some_wrong_values_of_every_recipe(tmp_path, monkeypatch, one_device):
  rng = random.Random(0)
  chosen = [c for path in RECIPES for c in rng.sample(everything(path), 10)]
  fuzz(tmp_path, monkeypatch, chosen, one_device)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_all_wrong_values(tmp_path, monkeypatch, path, one_device):
  fuzz(tmp_path, monkeypatch, everything(path), one_device)
