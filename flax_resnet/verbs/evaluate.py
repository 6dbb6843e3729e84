"""Evaluate a run's latest checkpoint, or weights, on a data set.

Every image of the recipe's eval_split counts once. --config.x.y=… changes a
key of the recipe, such as --config.data.data_dir or --config.augment.mean.
"""

import argparse
import math
import pathlib

from flax_resnet.training.schema import InputError, wrong_input
from flax_resnet.verbs import network


def add_arguments(parser: argparse.ArgumentParser) -> None:
  network.add_arguments(
    parser, "the recipe with the data; that of the run with --workdir"
  )
  parser.add_argument("--json", action="store_true", help="one JSON object")


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prints top-1 with its interval, top-5, loss and the number of images."""
  from flax_resnet import sharding
  from flax_resnet.training import evaluation
  from flax_resnet.training import run as runs
  from flax_resnet.training.workdir import to_json
  from flax_resnet.weights import pretrained

  config, weights = _what(flags, overrides)
  prepared = runs.prepare(config, sharding.make_mesh())
  with wrong_input("evaluate"):
    fields = dict(config["model"])
    kept = _renamed(fields)
    if flags.weights is not None:
      kept.pop("num_classes", None)  # A file says its own; no head is drawn.
    loaded = pretrained.load_pretrained(weights, **kept)
  if loaded.model.num_classes != prepared.model.num_classes:
    raise InputError(
      f"the weights have {loaded.model.num_classes} classes and the data set "
      f"{prepared.model.num_classes}: choose the --config of another data set"
    )
  state = prepared.initial_state()
  _check_channels(state.params, loaded.variables["params"])
  variables = sharding.replicate(loaded.variables, prepared.mesh)
  state = state.with_variables(variables)
  result = evaluation.evaluate(
    prepared.eval_step, state, prepared.eval_batches(), prepared.mesh
  )
  low, high = wilson_interval(result["val/top1"], int(result["val/count"]))
  if flags.json:
    print(to_json({**result, "val/top1_interval": [low, high]}))
    return
  data = config["data"]
  print(
    f"{fields['name']} of {weights} on {data['name']} {data['eval_split']}: "
    f"top1 {result['val/top1']:.2%} (error {1 - result['val/top1']:.2%}, "
    f"95% interval {low:.2%} to {high:.2%})  "
    f"top5 {result['val/top5']:.2%}  loss {result['val/loss']:.4f}  "
    f"on {result['val/count']:,} images"
  )


def wilson_interval(
  share: float, count: int, z: float = 1.96
) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a share (Wilson 1927).

  Args:
    share: What was found among `count`, in [0, 1].
    count: How many were looked at.
    z: Quantile of the normal distribution.
  """
  centre = share + z**2 / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
  scale = 1 + z**2 / count
  return (centre - half) / scale, (centre + half) / scale


def _what(
  flags: argparse.Namespace, overrides: list[str]
) -> tuple[dict, str | pathlib.Path]:
  """Returns the config, and where the weights are."""
  from flax_resnet.training import recipe, workdir

  network.check(flags)
  if flags.workdir is not None:
    config = recipe.override(workdir.read_config(flags.workdir), overrides)
    return config.to_dict(), flags.workdir
  if flags.model is None or flags.config is None:
    raise InputError("--weights needs --model, and --config for the data")
  config = recipe.load_recipe(
    flags.config, [*overrides, f"model.name={flags.model}"]
  )
  return config.to_dict(), flags.weights


def _check_channels(wanted: dict, found: dict) -> None:
  """The one thing of the data that the shapes of a network depend on."""
  for name, layer in wanted["stem"].items():
    ours, theirs = (
      tree["kernel"].shape[2] if "kernel" in tree else None
      for tree in (layer, found["stem"][name])
    )
    if ours != theirs:
      raise InputError(
        f"the images have {ours} channels and the weights want {theirs}: "
        "choose the --config of another data set"
      )


def _renamed(fields: dict) -> dict:
  return {"model" if key == "name" else key: v for key, v in fields.items()}
