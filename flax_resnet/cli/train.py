"""Train a network by a recipe, or continue a run.

A recipe is the name of one of this package (digits, imagenet_resnet50, ...), a
Python file, or the workdir or URL of a run, for its config. --config.x.y=...
changes a key of it: --config.optim.learning_rate=0.05.
"""

import argparse
import pathlib
import statistics

from etils import epy

from flax_resnet import bucket, recipes, training
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():  # "--help" needs no JAX.
  import jax

  from flax_resnet import hosts

# What flags of timm, torchvision, PyTorch's example and Keras are here.
_ELSEWHERE = {
  "--amp": "--config.model.dtype=bfloat16",
  "--arch": "--config.model.name=NAME",
  "--batch-size": "--config.batch_size=N, of all devices together",
  "--cutmix": "--config.augment.cutmix=ALPHA",
  "--data": "--config.data.root=DIR or --config.data.data_dir=DIR",
  "--data-dir": "--config.data.root=DIR or --config.data.data_dir=DIR",
  "--data-path": "--config.data.root=DIR or --config.data.data_dir=DIR",
  "--dataset": "--config.data.name=NAME",
  "--device": "JAX_PLATFORMS=cpu before the command; a GPU or TPU is found",
  "--drop-path": "--config.model.stochastic_depth=P",
  "--epochs": "--config.num_epochs=N",
  "--finetune": "--config.init_from=FILE|TAG",
  "--gpu": "CUDA_VISIBLE_DEVICES=0 before the command",
  "--image-size": "--config.data.image_size=N",
  "--img-size": "--config.data.image_size=N",
  "--initial-checkpoint": "--config.init_from=FILE|TAG",
  "--input-size": "--config.data.image_size=H,W",
  "--learning-rate": "--config.optim.learning_rate=X",
  "--lr": "--config.optim.learning_rate=X",
  "--mixup": "--config.augment.mixup=ALPHA",
  "--model": "--config.model.name=NAME",
  "--model-ema": "--config.ema_decay=0.9999",
  "--momentum": "--config.optim.momentum=X",
  "--num-classes": "--config.model.num_classes=N",
  "--opt": "--config.optim.name=NAME",
  "--output": "--workdir DIR",
  "--output-dir": "--workdir DIR",
  "--pretrained": "--config.init_from=FILE|TAG",
  "--resume": "the same command: a run in its --workdir continues",
  "--sched": "--config.optim.schedule=NAME",
  "--seed": "--config.seed=N, or --seeds 0,1,2",
  "--smoothing": "--config.loss.label_smoothing=X",
  "--wd": "--config.optim.weight_decay=X",
  "--weight-decay": "--config.optim.weight_decay=X",
  "--weights": "--config.init_from=FILE|TAG",
  "--workers": "--config.data.num_threads=N",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.set_defaults(elsewhere=_ELSEWHERE)
  parser.add_argument(
    "--config",
    type=flags.place,
    required=True,
    metavar="NAME|FILE|DIR|URL",
    help="the recipe",
  )
  parser.add_argument(
    "--workdir",
    type=flags.place,
    metavar="DIR|URL",
    help="folder of the run, which continues if it is there; "
    "runs/<name of the recipe> by default",
  )
  parser.add_argument(
    "--seeds",
    type=_seeds,
    metavar="0,1,2",
    help="a run of each seed, one after the other, in the folders seed0, ... "
    "of the workdir",
  )
  group = parser.add_argument_group(
    "hosts", "found by themselves on TPU pods, under SLURM and Open MPI"
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  group.add_argument("--num_processes", type=int, metavar="N")
  group.add_argument("--process_id", type=int, metavar="I", help="from 0")


def _seeds(text: str) -> list[int]:
  try:
    seeds = [int(seed) for seed in text.split(",")]
  except ValueError:
    raise InputError(
      f"--seeds is {text!r}: give numbers, such as 0,1,2"
    ) from None
  if len(set(seeds)) < len(seeds):
    raise InputError(f"--seeds is {text!r}: give each seed once")
  return seeds


def run(args: argparse.Namespace) -> None:
  """Trains to the end of the recipe, or of that of each seed."""
  with reported_as("hosts"):
    hosts.join_hosts(
      flags.print_error, args.coordinator, args.num_processes, args.process_id
    )
  flags.enable_compilation_cache()
  recipe = recipes.find_recipe(flags.local_recipe(args.config))
  is_run = recipe.name == "config.json"
  default = recipe.parent if is_run else pathlib.Path("runs", recipe.stem)
  if isinstance(args.config, bucket.Url):
    default = bucket.Url(bucket.shown(str(default)))
  workdir = args.workdir or default
  if args.seeds is None:
    training.train(recipes.load_recipe(recipe, args.overrides), workdir)
    return
  # All that is wrong with one is known before the first begins.
  configs = {
    seed: recipes.load_recipe(recipe, [*args.overrides, f"seed={seed}"])
    for seed in args.seeds
  }
  results = []
  for seed, config in configs.items():
    results.append(training.train(config, workdir / f"seed{seed}").summary)
  if jax.process_index() == 0:
    name = "map" if "val/map" in results[0] else "top1"
    print(f"{name} {_spread([result[f'val/{name}'] for result in results])}")


def _spread(shares: list[float]) -> str:
  """Returns mean and standard deviation (of a sample) of several runs."""
  each = ", ".join(f"{share:.2%}" for share in shares)
  spread = f" +- {statistics.stdev(shares):.2%}" if len(shares) > 1 else ""
  return f"{statistics.mean(shares):.2%}{spread} of {len(shares)} runs: {each}"
