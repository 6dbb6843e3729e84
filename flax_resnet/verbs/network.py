"""Which trained network a verb works on: its flags, and what they name."""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING

from flax_resnet.training.schema import InputError, wrong_input

if TYPE_CHECKING:
  from flax_resnet.predictor import Predictor


def add_arguments(
  parser: argparse.ArgumentParser,
  config_help: str = "the recipe that the weights were trained by, for the "
  "options of the network and what is done to images",
) -> None:
  """Adds the flags that say which trained network."""
  parser.add_argument(
    "--workdir", type=pathlib.Path, metavar="DIR", help="of a run"
  )
  parser.add_argument(
    "--weights",
    metavar="FILE",
    help=".safetensors, .pth, a Flax checkpoint or hf-hub:owner/repository",
  )
  parser.add_argument("--model", metavar="NAME", help="of the weights")
  parser.add_argument(
    "--config",
    type=pathlib.Path,
    metavar="FILE",
    help=config_help,
  )


def check(flags: argparse.Namespace) -> None:
  """Raises InputError unless the flags name one trained network."""
  if (flags.workdir is None) == (flags.weights is None):
    raise InputError("give either --workdir or --weights")
  for flag in ("model", "config"):
    if flags.workdir is not None and getattr(flags, flag) is not None:
      raise InputError(f"--{flag} is that of --weights: a run says its own")


def predictor_of(flags: argparse.Namespace) -> "Predictor":
  """Returns what the flags ask for."""
  from flax_resnet.predictor import Predictor
  from flax_resnet.training import recipe, workdir
  from flax_resnet.weights import hub
  from flax_resnet.weights.preprocessing import Preprocessing
  from flax_resnet.weights.pretrained import load_pretrained

  check(flags)
  if flags.workdir is not None:
    workdir.read_config(flags.workdir)
  said = (
    flags.workdir or flags.config or str(flags.weights).startswith(hub.PREFIX)
  )
  if flags.model is None and not said:
    raise InputError(
      f"{flags.weights} does not say of which network: give --model NAME"
    )
  name, fields, preprocessing = flags.model, {}, None
  if flags.config is not None:
    config = recipe.load_recipe(flags.config).to_dict()
    fields = dict(config["model"])
    fields.pop("num_classes", None)  # A file says its own.
    of_recipe = fields.pop("name")
    name = flags.model or of_recipe
    preprocessing = Preprocessing.of_run(config)
  with wrong_input("--workdir" if flags.workdir else "--weights"):
    loaded = load_pretrained(flags.workdir or flags.weights, name, **fields)
    if preprocessing is not None:
      loaded = dataclasses.replace(loaded, preprocessing=preprocessing)
    return Predictor.of(loaded)
