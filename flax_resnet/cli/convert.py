"""Convert weights between PyTorch and Flax.

.safetensors, .pth, .pth.tar, .pt, .th, .bin and .ckpt are PyTorch's (all but
the first need torch); a name without the ending of a format is a Flax
checkpoint, a folder (Orbax). Published tags (resnet50.a1_in1k), repositories of
the hub and their clones are read as well, and runs, by a workdir or one of its
checkpoints: they say their model themselves.

With --hub, OUT is a folder for the Hugging Face hub, which timm opens too:
weights in timm's names, config.json and a card. `hf upload` publishes it.
"""

import argparse
import pathlib

from etils import epy

from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet.models import variables as model_variables
  from flax_resnet.weights import (
    files,
    names,
    pretrained,
    publish,
    state_dict,
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", metavar="IN|URL|TAG", type=_source)
  parser.add_argument("target", metavar="OUT", type=flags.path)
  parser.add_argument("--model", metavar="NAME", help="network of the weights")
  parser.add_argument(
    "--names",
    metavar="WHOSE",
    help="names of the tensors in OUT: torchvision, timm_v2, transformers or "
    "cifar; by default those under which such weights are published",
  )
  parser.add_argument(
    "--hub", action="store_true", help="write a folder for the hub"
  )
  flags.add_ema_argument(parser)


def _source(text: str) -> str | pathlib.Path:
  """Returns a repository of the hub by its name, a URL, or a path."""
  return text if text.startswith("hf-hub:") else flags.place(text)


def run(args: argparse.Namespace) -> None:
  """Writes OUT and prints what is in it."""
  flags.check_is_new(args.target)
  written = () if args.hub else (".safetensors", *files.PYTORCH)
  flags.check_ending(
    args.target,
    written,
    "convert --hub writes a folder"
    if args.hub
    else "convert writes safetensors, PyTorch's files, or the folder of a Flax "
    "checkpoint",
  )
  if args.names not in {None, *names.CONVENTIONS}:
    raise InputError(
      f"--names is {args.names!r}: use one of {', '.join(names.CONVENTIONS)}"
    )
  if args.hub and args.names:
    raise InputError("--hub writes timm's names: leave --names out")
  with reported_as(f"convert {args.source}"):
    flags.check_model_is_given(args.source, args.model)
    loaded = pretrained.load_pretrained(args.source, args.model, ema=args.ema)
    if args.hub:
      _save(args, loaded)
    elif args.target.name.lower().endswith(written):
      tensors = state_dict.to_torch(loaded.variables, loaded.model, args.names)
      files.write(args.target, tensors)
    else:
      files.write_checkpoint(args.target, loaded.variables)
  count = model_variables.count_parameters(loaded.variables["params"])
  print(
    f"{args.target}: {args.model or args.source}, {count:,} parameters, "
    f"{loaded.model.num_classes} classes"
  )


def _save(args: argparse.Namespace, loaded: "pretrained.Pretrained") -> None:
  """Writes the folder for the hub; of a run, its recipe and results as well."""
  source = pretrained.find(args.source)
  recipe, results = None, None
  if source.of_run:
    recipe, _ = files.read_about(source.path)
    results = files.read_results(source.path)
  publish.save_pretrained(
    args.target,
    loaded.model,
    loaded.variables,
    name=args.model or source.model,
    preprocessing=loaded.preprocessing,
    class_names=loaded.class_names,
    recipe=recipe,
    results=results,
    multi_label=loaded.multi_label,
  )
