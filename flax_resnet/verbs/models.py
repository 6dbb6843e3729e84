"""List the networks with their parameters and multiply-adds.

Multiply-adds (GMACs, 10^9) are those of one image of 224 pixels, or of 32 for
the CIFAR nets. Nothing is computed or downloaded.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Prints a line a network."""
  del overrides
  from flax_resnet.models import cost, create_model, list_models

  if not flags.json:
    print(f"{'model':24} {'parameters':>12} {'GMACs':>7} {'at':>4}")
  for name in list_models():
    # A scanned net has the same costs and is traced in no time.
    model = create_model(name, scan=True)
    size = 32 if model.stem == "cifar" else 224
    parameters = cost.count_parameters(model)
    multiply_adds = cost.count_multiply_adds(model, size)
    if flags.json:
      row = {
        "name": name,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "image_size": size,
      }
      print(json.dumps(row), flush=True)
    else:
      print(
        f"{name:24} {parameters:12,} {multiply_adds / 1e9:7.3f} {size:4}",
        flush=True,
      )
