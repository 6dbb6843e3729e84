"""List the networks with their parameters and multiply-adds.

Multiply-adds (GMACs, 10^9) are those of one image of 224 pixels, or of 32 for
the CIFAR nets. Nothing is computed or downloaded.
"""

import argparse
import dataclasses

from etils import epy

from flax_resnet import storage

with epy.lazy_imports():
  from flax_resnet import models
  from flax_resnet.models import cost, zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: argparse.Namespace) -> None:
  """Prints a line for each network."""
  if not args.json:
    print(f"{'model':24} {'parameters':>12} {'GMACs':>7} {'at':>4}  source")
  for name in models.list_models():
    model = models.create_model(name)
    size = 32 if model.stem == "cifar" else 224
    costs, source = cost.cost(model, size), zoo.source_of(name)
    row = (
      f"{name:24} {costs.parameters:12,} {costs.multiply_adds / 1e9:7.3f} "
      f"{size:4}  {source}"
    )
    if args.json:
      fields = {"image_size": size, "source": source}
      row = storage.to_json(
        {"name": name, **dataclasses.asdict(costs), **fields}
      )
    print(row, flush=True)
