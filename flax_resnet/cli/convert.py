"""Convert weights between PyTorch and Flax.

.safetensors, .pth, .pt, .th and .bin are PyTorch's (the last four need torch);
a name without the ending of a format is a Flax checkpoint, a folder (Orbax). A
run can be read as well, by its workdir or one of its checkpoints: it says its
model itself.
"""

import argparse

from etils import epy

from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet.models import variables as model_variables
  from flax_resnet.weights import files, names, pretrained, state_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", metavar="IN", type=flags.path)
  parser.add_argument("target", metavar="OUT", type=flags.path)
  parser.add_argument("--model", metavar="NAME", help="network of the weights")
  parser.add_argument(
    "--names",
    metavar="WHOSE",
    help="names of the tensors in OUT: torchvision, timm_v2, transformers or "
    "cifar; by default those under which such weights are published",
  )


def run(args: argparse.Namespace) -> None:
  """Writes OUT and prints what is in it."""
  flags.check_is_new(args.target)
  written = (".safetensors", *files.PYTORCH)
  flags.check_ending(
    args.target,
    written,
    "convert writes safetensors, PyTorch's files, or the folder of a Flax "
    "checkpoint",
  )
  if args.names not in {None, *names.CONVENTIONS}:
    raise InputError(
      f"--names is {args.names!r}: use one of {', '.join(names.CONVENTIONS)}"
    )
  if args.source.exists():
    flags.check_model_is_given(args.source, args.model)
  with reported_as(f"convert {args.source}"):
    loaded = pretrained.load_pretrained(args.source, args.model)
    if args.target.suffix.lower() in written:
      tensors = state_dict.to_torch(loaded.variables, loaded.model, args.names)
      files.write(args.target, tensors)
    else:
      files.write_checkpoint(args.target, loaded.variables)
  count = model_variables.count_parameters(loaded.variables["params"])
  print(
    f"{args.target}: {args.model or args.source}, {count:,} parameters, "
    f"{loaded.model.num_classes} classes"
  )
