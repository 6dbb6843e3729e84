"""Recipes: config files, and what the command line changes in them."""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import pathlib
import sys
from typing import Any, cast

from ml_collections import ConfigDict

from flax_resnet.training.schema import InputError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """The keys of a config; each section holds the arguments of a function.

  Attributes:
    seed: Of parameters, order and augmentation: 0 to 2^32 - 1.
    batch_size: Examples of a step, on all devices together.
    accumulate: Parts in which the gradient of a step is computed, one after the
      other, for a batch that does not fit into memory: it is that of the whole
      batch. BatchNorm needs `model.norm_group_size` then.
    eval_batch_size: Examples that are evaluated at a time.
    num_epochs: Length of the run, or None.
    num_steps: Length of the run, or None; one of the two is given.
    steps_per_call: Steps that one call of the compiled program does. With more
      than 1 all training images are kept on every device, and must fit there;
      it pays where a step is short.
    log_every: Steps between two logged rows.
    eval_every: Steps between two evaluations.
    checkpoint_every: Steps between two checkpoints.
    keep_checkpoints: How many of the latest to keep, besides the best.
    init_from: Weights to start from, all that `weights.load_pretrained` takes;
      None to draw them. See `warm_start.warm_start`.
    ema_decay: Share of the old that an average of parameters and running
      statistics keeps; evaluation takes the average. 0 for none. See
      `averaging.follow`.
    ema_every: Steps between two updates of this average.
    skip_nonfinite: How many steps of the run may be skipped as their loss or
      gradient is not finite; one more ends it. See `faults.settle`.
    freeze_trunk: Whether the head alone is trained, on a trunk that works as in
      evaluation: running statistics, no dropout, no stochastic depth.
    model: Arguments of `models.create_model`.
    data: Arguments of `data.load`.
    augment: Arguments of `data.augment.make_augment`.
    loss: Arguments of `losses.make_loss`.
    optim: Arguments of `optim.make_optimizer`.

  Raises:
    ValueError: For a number out of its range.
  """

  seed: int
  batch_size: int
  accumulate: int = 1
  eval_batch_size: int
  num_epochs: int | None
  num_steps: int | None
  steps_per_call: int
  log_every: int
  eval_every: int
  checkpoint_every: int
  keep_checkpoints: int
  init_from: str | None = None
  ema_decay: float = 0.0
  ema_every: int = 1
  skip_nonfinite: int = 0
  freeze_trunk: bool = False
  model: Mapping[str, Any]
  data: Mapping[str, Any]
  augment: Mapping[str, Any]
  loss: Mapping[str, Any]
  optim: Mapping[str, Any]

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed is {self.seed}: use 0 to {2**32 - 1}")
    for name in (
      "batch_size",
      "accumulate",
      "eval_batch_size",
      "keep_checkpoints",
      "steps_per_call",
      "log_every",
      "eval_every",
      "checkpoint_every",
      "ema_every",
    ):
      _at_least_1(name, getattr(self, name))
    if self.skip_nonfinite < 0:
      raise ValueError(
        f"skip_nonfinite is {self.skip_nonfinite}: use 0 or more"
      )
    if not 0 <= self.ema_decay < 1:
      raise ValueError(
        f"ema_decay is {self.ema_decay}: use 0 or more, less than 1"
      )
    if (self.num_epochs is None) == (self.num_steps is None):
      raise ValueError(
        f"num_epochs is {self.num_epochs} and num_steps {self.num_steps}: give "
        "one of them, and None for the other"
      )
    if self.freeze_trunk and self.init_from is None:
      raise ValueError(
        "freeze_trunk is True and init_from None, so that the trunk would stay "
        "as it was drawn: give init_from, the weights to start from"
      )

  def total_steps(self, num_examples: int) -> int:
    """Returns the length of the run in steps."""
    steps = self.num_steps
    if self.num_epochs is not None:
      steps = round(self.num_epochs * num_examples / self.batch_size)
    if steps is None or not 1 <= steps < 2**31:  # They are counted in int32.
      raise ValueError(
        f"the run has {steps} steps: use at least 1, below {2**31}"
      )
    return steps


def load_recipe(
  path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> ConfigDict:
  """Returns the config that a file's `get_config()` makes.

  Args:
    path: Of a Python file. It is run: it is code, not data.
    overrides: As on the command line: "optim.learning_rate=0.05". A length
      given here, `num_steps` or `num_epochs`, replaces the file's.

  Raises:
    InputError: When there is no such file, when it fails, or when it has no
      such key.
  """
  return override(_run(pathlib.Path(path)), overrides)


def override(
  config: ConfigDict | Mapping[str, Any], overrides: Sequence[str]
) -> ConfigDict:
  """Returns the config with some keys changed, as in `load_recipe`."""
  try:
    config = ConfigDict(cast(Any, config))
  except (AttributeError, TypeError, ValueError) as error:  # Of a key's name.
    raise InputError(f"the config cannot be read: {error}") from error
  keys = [_override(config, text) for text in overrides]
  lengths = {"num_epochs", "num_steps"}
  if len(given := lengths & set(keys)) == 1:
    (other,) = lengths - given
    config[other] = None
  return config


def _run(path: pathlib.Path) -> ConfigDict:
  if not path.is_file():
    raise InputError(f"config file {path} is not there: give the path of one")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise InputError(f"config file {path} is not Python: give a .py file")
  module = importlib.util.module_from_spec(spec)
  # A recipe may import another one that lies beside it.
  sys.path.insert(0, str(path.absolute().parent))
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except Exception as error:  # Whatever the user's own code raises.
    what = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(f"config file {path} fails with {what}") from error
  finally:
    sys.path.pop(0)
  if not isinstance(config, ConfigDict):
    raise InputError(f"get_config() of {path} does not return a ConfigDict")
  return config


def _override(config: ConfigDict, text: str) -> str:
  """Applies "a.b=value" and returns "a.b".

  The last name may be new to the file: an option that it leaves at its
  default. Whether there is such an option is for the schema to say.
  """
  path, equals, value = text.partition("=")
  if not equals:
    raise InputError(f"--config.{text} has no value: write --config.{text}=…")
  *sections, key = path.split(".")
  section = cast(Any, config)
  for depth, name in enumerate(sections):
    where = ".".join(["config", *sections[: depth + 1]])
    if name not in section:
      raise InputError(f"{where} is unknown: {nearest(name, section)}")
    if not isinstance(section[name], ConfigDict):
      raise InputError(f"{where} has no keys: set {where} itself")
    section = section[name]
  if isinstance(section.get(key), ConfigDict):
    keys = ", ".join(section[key])
    raise InputError(f"config.{path} is a section: set one of its keys, {keys}")
  with section.unlocked(), section.ignore_type():
    section[key] = _value(value)
  return path


def _value(text: str) -> Any:
  """Reads a Python literal, or else a string."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _at_least_1(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f"{name} is {value}: use 1 or more")
