"""Evaluate a checkpoint of a run, or weights, on a data set.

Every image of the recipe's eval_split counts once; no other split is needed.
Images are prepared as published weights say, or as the recipe does.
--config.x.y=… changes a key of the recipe, such as --config.data.data_dir or
--config.augment.mean.
"""

import argparse
import math
from typing import Any

from etils import epy

from flax_resnet import recipes, schema, storage
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet import sharding
  from flax_resnet.data import dataset
  from flax_resnet.training import evaluation, setup
  from flax_resnet.weights import files, preprocessing, pretrained


def add_arguments(parser: argparse.ArgumentParser) -> None:
  flags.add_network_arguments(
    parser, "recipe with the data; that of the run with --workdir"
  )
  parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> None:
  """Prints top-1 with its interval, top-5, loss and the number of images."""
  config, weights = _config(args), flags.weights_of(args)
  recipe = schema.build("config", setup.Recipe, config)
  with reported_as("evaluate"):
    loaded = flags.load_weights_of_recipe(weights, config, ema=args.ema)
  classes, mesh = loaded.model.num_classes, sharding.make_mesh()
  # A run's own names: its images may be in folders of other classes as well.
  names = loaded.class_names if args.workdir is not None else ()
  split = dataset.load_eval(recipe.data, num_classes=classes, class_names=names)
  if classes != (found := len(split.source.class_names)):
    raise InputError(
      f"the weights have {classes} classes and the data set {found}: choose "
      "the --config of another data set"
    )
  if loaded.channels != (channels := split.reader.image_shape[-1]):
    raise InputError(
      f"the images have {channels} channels and the weights want "
      f"{loaded.channels}: choose the --config of another data set"
    )
  _, normalize = setup.set_up_augment(recipe, loaded.model, channels)
  result = evaluation.evaluate(
    evaluation.make_eval_step(loaded.model, normalize, mesh=mesh),
    sharding.replicate(loaded.variables, mesh),
    setup.eval_batches(recipe, split, mesh),
    mesh,
  )
  evaluation.check_counted(result)
  low, high = wilson_interval(result["val/top1"], int(result["val/count"]))
  if args.json:
    print(storage.to_json({**result, "val/top1_interval": [low, high]}))
    return
  model, data = config["model"], config["data"]
  print(
    f"{model['name']} of {args.workdir or weights} on {data['name']} "
    f"{data['eval_split']}: "
    f"top1 {result['val/top1']:.2%} (error {1 - result['val/top1']:.2%}, "
    f"95% interval {low:.2%} to {high:.2%})  "
    f"top5 {result['val/top5']:.2%}  loss {result['val/loss']:.4f}  "
    f"on {result['val/count']:,} images"
  )


def _config(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the config of the run, or of the recipe for the weights."""
  flags.check_network_arguments(args)
  if args.workdir is not None:
    config = storage.read_config(flags.local_run(args.workdir, args.checkpoint))
    return recipes.override(config, args.overrides).to_dict()
  if args.config is None:
    raise InputError("--weights needs --config for the data")
  with reported_as("--weights"):
    flags.check_model_is_given(args.weights, args.model)
    source = pretrained.find(args.weights)
  config, overrides = recipes.load_recipe(args.config).to_dict(), args.overrides
  if args.model is None:  # The network is theirs, not the recipe's.
    config["model"] = {"name": source.model, **source.fields}
  else:
    overrides = [*overrides, f"model.name={args.model}"]
  if source.preprocessing and not source.of_run:
    overrides = [*_overrides(source.preprocessing), *overrides]
  return recipes.override(config, overrides).to_dict()


def _overrides(expected: "preprocessing.Preprocessing") -> list[str]:
  """Returns the keys of a recipe that prepare images as weights expect them."""
  size, short_side = expected.image_size, expected.short_side
  files.say(
    f"images are prepared as the weights say: {size} pixels of {short_side}, "
    f"{expected.interpolation}, mean {tuple(expected.mean)}, std "
    f"{tuple(expected.std)}"
  )
  return [
    f"data.eval_image_size={size}",
    f"data.center_crop_fraction={size / short_side}",
    f"data.eval_interpolation={expected.interpolation}",
    f"augment.mean={tuple(expected.mean)}",
    f"augment.std={tuple(expected.std)}",
  ]


def wilson_interval(
  share: float, count: int, z: float = 1.96
) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a share (Wilson 1927).

  Args:
    share: share of examples, in [0, 1].
    count: number of examples.
    z: quantile of the normal distribution; default 1.96.
  """
  center = share + z**2 / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
  scale = 1 + z**2 / count
  return (center - half) / scale, (center + half) / scale
