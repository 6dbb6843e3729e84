"""Writes the table of the costs of all networks.

    python -m tests.models.costs

It takes a minute. tests/models/test_cost.py compares it with what
is counted.
"""

from collections.abc import Iterator
import csv
import dataclasses
from typing import Any

from flax_resnet.models import create_model, list_models
from flax_resnet.models.cost import cost, TABLE, usual_size


def row(name: str) -> dict[str, Any]:
  """Returns the row of a network."""
  model = create_model(name)
  return {"name": name, **dataclasses.asdict(cost(model, usual_size(model)))}


def rows() -> Iterator[dict[str, Any]]:
  return map(row, list_models())


def main() -> None:
  with TABLE.open("w", newline="") as file:
    names = ("name", "parameters", "multiply_adds", "activations")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows())


if __name__ == "__main__":
  main()
