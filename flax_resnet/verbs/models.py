"""List the networks with their parameters and multiply-adds.

Multiply-adds (GMACs, 10^9) are those of one image of 224 pixels, or of 32 for
the CIFAR nets. Nothing is computed or downloaded.
"""

import argparse
import dataclasses
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prints a line a network."""
  del overrides
  from flax_resnet.models import create_model, list_models
  from flax_resnet.models.cost import cost
  from flax_resnet.models.zoo import source_of

  if not flags.json:
    print(f"{'model':24} {'parameters':>12} {'GMACs':>7} {'at':>4}  source")
  for name in list_models():
    # A scanned net costs the same and is counted faster.
    model = create_model(name, scan=True)
    size = 32 if model.stem == "cifar" else 224
    costs = cost(model, size)
    if flags.json:
      row = {"name": name, **dataclasses.asdict(costs), "image_size": size}
      row["source"] = source_of(name)
      print(json.dumps(row), flush=True)
    else:
      print(
        f"{name:24} {costs.parameters:12,} "
        f"{costs.multiply_adds / 1e9:7.3f} {size:4}  {source_of(name)}",
        flush=True,
      )
