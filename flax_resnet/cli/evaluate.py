"""Evaluate checkpoints of runs, or weights, on a data set.

Several are one table, a line each with their images/s. Every image of the
recipe's eval_split counts once; no other split is needed. Images are prepared
as published weights say, or as the recipe does.
--image-size and --crop-fraction choose another size and crop; --config.x.y=…
changes a key of the recipe, such as --config.data.data_dir or
--config.augment.mean.

--json has all: accuracy by class, the confusion matrix (rows are classes,
columns predictions), the expected calibration error (Guo et al. 2017) and its
15 bins. --details prints them.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from etils import epy

from flax_resnet import recipes, schema, storage
from flax_resnet.cli import flags, tables
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  import numpy as np

  from flax_resnet import models, sharding
  from flax_resnet.data import dataset, imagenet, sources
  from flax_resnet.training import evaluation, multilabel, scores, setup
  from flax_resnet.weights import files, preprocessing, pretrained


def add_arguments(parser: argparse.ArgumentParser) -> None:
  flags.add_network_arguments(
    parser, "recipe with the data; that of the run with --workdir", several=True
  )
  parser.add_argument(
    "--flip",
    action="store_true",
    help="average the logits of each image and its mirror image",
  )
  parser.add_argument(
    "--image-size",
    type=_image_size,
    metavar="N|H,W",
    help="pixels that the network sees, of each side or height and width",
  )
  parser.add_argument(
    "--crop-fraction",
    type=float,
    metavar="X",
    help="share of the short side that it sees, 0.001 to 1",
  )
  parser.add_argument(
    "--top",
    type=int,
    metavar="N",
    help="besides 1 and 5: share whose class is among the N most probable ones",
  )
  parser.add_argument(
    "--details",
    action="store_true",
    help="print accuracy by class, confusions and calibration as well",
  )
  parser.add_argument(
    "--real-labels",
    type=flags.path,
    metavar="FILE",
    help="real.json: ReaL labels of ImageNet's validation images, of which a "
    "prediction may be any (Beyer et al. 2020)",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object")


def _image_size(text: str) -> int | tuple[int, int]:
  """Returns the size that "224" or "96,128" gives."""
  try:
    sides = [int(side) for side in text.split(",")]
  except ValueError:
    sides = []
  if len(sides) not in (1, 2):
    raise InputError(
      f"--image-size is {text!r}: give a number, or height and width, 96,128"
    )
  for side in sides:
    flags.check_is_positive("--image-size", side)
  return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def run(args: argparse.Namespace) -> None:
  """Prints what each network comes to, as soon as it is evaluated."""
  if args.top is not None:
    flags.check_is_positive("--top", args.top)
  if args.crop_fraction is not None and not 0.001 <= args.crop_fraction <= 1:
    raise InputError(f"--crop-fraction is {args.crop_fraction}: use 0.001 to 1")
  each = list(_each_network(args))
  configs = [config_of(one) for one in each]  # All, before any is evaluated.
  names = [str(one.workdir or one.weights) for one in each]
  width = max(map(len, names))
  has_head = False
  for one, name, config in zip(each, names, configs, strict=True):
    if args.real_labels is not None:
      _print_real(name, one, config)
      continue
    found, classes = _scores(one, config)
    of = _title(name, config)
    if isinstance(found, dict):
      _print_several(of, name, found, classes if args.json else None)
      continue
    if args.json:
      row = tables.as_json(found, classes, args.top)
      print(storage.to_json({"network": name, **row}), flush=True)
      continue
    if len(each) > 1:
      if not has_head:
        print(tables.head(width, args.top), flush=True)
        has_head = True
      print(tables.row(name.ljust(width), found, args.top), flush=True)
    else:
      print(tables.line(of, found, args.top))
    if args.details:
      print(tables.details(found, list(map(flags.printable, classes))))


def _each_network(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
  """Yields the flags of each network."""
  pairs = [(None, weights) for weights in args.weights or ()]
  pairs += [(workdir, None) for workdir in args.workdir or ()]
  if not pairs or (args.weights and args.workdir):
    pairs = [(args.workdir, args.weights)]  # `config_of` says what is wrong.
  for workdir, weights in pairs:
    one = {"workdir": workdir, "weights": weights}
    yield argparse.Namespace(**{**vars(args), **one})


@dataclasses.dataclass(frozen=True)
class Task:
  """What is evaluated.

  Attributes:
    recipe: the checked config.
    model: the network.
    variables: its variables, on all devices.
    normalize: normalization of uint8 images.
    split: the images.
    columns: classes of the network that the labels of the images stand for, in
      their order; None for all.
    mesh: the devices.
  """

  recipe: "setup.Recipe"
  model: "models.ResNet"
  variables: Any
  normalize: Any
  split: "dataset.Split"
  columns: "np.ndarray | None"
  mesh: Any

  def batches(self) -> Iterator[Any]:
    """Returns the batches of all images."""
    return setup.eval_batches(self.recipe, self.split, self.mesh)


def load_task(args: argparse.Namespace, config: dict[str, Any]) -> Task:
  """Returns a network, and images that fit it."""
  weights = flags.weights_of(args)
  recipe = schema.build("config", setup.Recipe, config)
  with reported_as("evaluate"):
    loaded = flags.load_weights_of_recipe(weights, config, ema=args.ema)
  classes, mesh = loaded.model.num_classes, sharding.make_mesh()
  # A run's own names: its images may be in folders of other classes as well.
  names = loaded.class_names if args.workdir is not None else ()
  split = dataset.load_eval(recipe.data, num_classes=classes, class_names=names)
  found, columns = len(split.source.class_names), None
  # Images of ImageNet's classes, or of some of them; a run has its own.
  if classes == imagenet.NUM_CLASSES and args.workdir is None:
    columns = imagenet.labels_of(split.source.class_names)
  if classes != found and columns is None:
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
  return Task(
    recipe,
    loaded.model,
    sharding.replicate(loaded.variables, mesh),
    normalize,
    split,
    columns,
    mesh,
  )


def _scores(
  args: argparse.Namespace, config: dict[str, Any]
) -> tuple["scores.Scores | dict[str, Any]", Sequence[str]]:
  """Returns the scores of a network, and the names of its classes.

  Where images have several labels, logits and labels in place of the scores.
  """
  task = load_task(args, config)
  split, mesh, batches = task.split, task.mesh, task.batches()
  class_names = split.source.class_names
  if sources.is_multi_label(split.source):
    if args.flip or args.top or args.details:
      raise InputError(
        "--flip, --top and --details are for images with one label each"
      )
    eval_step = multilabel.make_eval_step(task.model, task.normalize, mesh=mesh)
    each = {"": task.variables}
    of_one = multilabel.score_each(eval_step, each, batches, mesh)
    return of_one[""], class_names
  step = scores.make_score_step(
    task.model,
    task.normalize,
    mesh=mesh,
    flip=args.flip,
    columns=task.columns,
  )
  result = scores.score(step, task.variables, batches, mesh, len(class_names))
  evaluation.check_counted({"val/count": result.means["count"]})
  return result, class_names


def _title(name: str, config: Mapping[str, Any]) -> str:
  """Returns network and data set, of a config that was checked."""
  model, data = config["model"], config["data"]
  return f"{model['name']} of {name} on {data['name']} {data['eval_split']}"


def _print_real(
  name: str, args: argparse.Namespace, config: dict[str, Any]
) -> None:
  """Prints the share of images of which a ReaL label is predicted."""
  task = load_task(args, config)
  source = task.split.source
  names = map(source.name, range(len(source)))
  real = imagenet.read_real_labels(args.real_labels, names)
  logits_of = scores.make_logits(task.model, task.normalize, args.flip)
  predicted = scores.predict_each(
    logits_of, task.variables, task.batches(), task.mesh
  )
  top1, count = imagenet.real_top1(predicted, real)
  if args.json:
    row = {"network": name, "val/real_top1": top1, "val/count": count}
    print(storage.to_json(row), flush=True)
  else:
    of = _title(name, config)
    print(f"{of}: real top1 {top1:.2%}  on {count:,} images", flush=True)


def _print_several(
  of: str, name: str, found: Mapping[str, Any], classes: Sequence[str] | None
) -> None:
  """Prints mean average precision, loss and number of images.

  Args:
    of: network and data set.
    name: path or name of the weights.
    found: logits and labels of the images.
    classes: names of the classes for one JSON object, which has the average
      precision of each class besides, null of one that no image has.
  """
  result = multilabel.means(found)
  evaluation.check_counted(result)
  if classes is not None:
    each = multilabel.average_precision(found["logits"], found["label"])
    by_class = dict(zip(classes, each.tolist(), strict=True))
    row = {"network": name, **result, "val/ap": by_class}
    print(storage.to_json(row), flush=True)
    return
  print(
    f"{of}: map {result['val/map']:.2%}  loss {result['val/loss']:.4f}  "
    f"on {result['val/count']:,} images",
    flush=True,
  )


def config_of(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the config of the run, or of the recipe for the weights."""
  flags.check_network_arguments(args)
  changes = [*args.overrides]
  if args.image_size is not None:
    changes.append(f"data.eval_image_size={args.image_size}")
  if args.crop_fraction is not None:
    changes.append(f"data.center_crop_fraction={args.crop_fraction}")
  if args.workdir is not None:
    config = storage.read_config(flags.local_run(args.workdir, args.checkpoint))
    return recipes.override(config, changes).to_dict()
  if args.config is None:
    raise InputError("--weights needs --config for the data")
  with reported_as("--weights"):
    flags.check_model_is_given(args.weights, args.model)
    source = pretrained.find(args.weights)
  recipe = flags.local_recipe(args.config)
  config, overrides = recipes.load_recipe(recipe).to_dict(), changes
  if args.model is None:  # The network is theirs, not the recipe's.
    config["model"] = {"name": source.model, **source.fields}
  else:
    overrides = [*overrides, f"model.name={args.model}"]
  if source.preprocessing and not source.of_run:
    overrides = [*_overrides(source.preprocessing), *overrides]
  return recipes.override(config, overrides).to_dict()


def _overrides(expected: "preprocessing.Preprocessing") -> list[str]:
  """Returns the keys of a recipe that prepare images as weights expect them."""
  (height, width), (rows, columns) = expected.shape, expected.before_crop
  square = height == width
  seen = f"{height}" if square else f"{height} x {width}"
  of = f"{rows}" if square else f"{rows} x {columns}"
  files.say(
    f"images are prepared as the weights say: {seen} pixels of {of}, "
    f"{expected.interpolation}, mean {tuple(expected.mean)}, std "
    f"{tuple(expected.std)}"
  )
  return [
    f"data.eval_image_size={expected.image_size}",
    f"data.center_crop_fraction={expected.center_crop_fraction}",
    f"data.eval_interpolation={expected.interpolation}",
    f"data.eval_resize_first={expected.resize_first}",
    f"augment.mean={tuple(expected.mean)}",
    f"augment.std={tuple(expected.std)}",
  ]
