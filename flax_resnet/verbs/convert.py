"""Convert weights between PyTorch and Flax.

.safetensors, .pth, .pt, .th and .bin are PyTorch's (the last four need torch);
a path with another ending, or a folder, is a Flax checkpoint (Orbax). A workdir
of a run can be read as well: its latest checkpoint; it says its model itself.
"""

import argparse
import pathlib

from flax_resnet.training.schema import InputError, wrong_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("source", metavar="IN", type=pathlib.Path)
  parser.add_argument("target", metavar="OUT", type=pathlib.Path)
  parser.add_argument("--model", metavar="NAME", help="of the weights")
  parser.add_argument(
    "--names",
    metavar="WHOSE",
    help="of the tensors in OUT: torchvision, timm_v2, transformers or cifar; "
    "by default those under which such weights are published",
  )


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Writes OUT and says what is in it."""
  del overrides
  import jax

  from flax_resnet.weights import files, names, pretrained, state_dict

  if flags.target.exists():
    raise InputError(f"{flags.target} is there already: choose another OUT")
  if not flags.target.absolute().parent.is_dir():
    raise InputError(f"{flags.target.parent} is not a folder: make it first")
  if flags.names not in {None, *names.CONVENTIONS}:
    raise InputError(
      f"--names is {flags.names!r}: use one of {', '.join(names.CONVENTIONS)}"
    )
  of_run = (flags.source / "config.json").is_file()
  if flags.model is None and flags.source.exists() and not of_run:
    raise InputError(
      f"{flags.source} does not say of which network: give --model NAME"
    )
  with wrong_input(f"convert {flags.source}"):
    loaded = pretrained.load_pretrained(flags.source, flags.model)
    if flags.target.suffix in (".safetensors", *files.PYTORCH):
      tensors = state_dict.to_torch(loaded.variables, loaded.model, flags.names)
      files.write(flags.target, tensors)
    else:
      files.write_checkpoint(flags.target, loaded.variables)
  leaves = jax.tree.leaves(loaded.variables["params"])
  count = sum(leaf.size for leaf in leaves)
  print(
    f"{flags.target}: {flags.model or flags.source}, {count:,} parameters, "
    f"{loaded.model.num_classes} classes"
  )
