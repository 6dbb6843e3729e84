"""The names and shapes of timm's networks, for tests without timm.

`python -m tests.weights.timm_names` writes the table: last with timm 1.0.31.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import hashlib
import importlib
import math
import pathlib

TABLE = pathlib.Path(__file__).with_suffix(".csv")
COLUMNS = ("name", "parameters", "tensors", "sha256")
# The files of timm that the networks are from.
MODULES = ("resnet", "resnetv2", "resnest")


def row(shapes: Mapping[str, Sequence[int]]) -> tuple[str, str, str]:
  """Returns the last three columns of the state_dict of a network.

  Args:
    shapes: shapes by name, without the counters of BatchNorm.

  Returns:
    The number of parameters, that of tensors, and the digest of their sorted
    names and shapes.
  """
  parameters = sum(
    math.prod(shape) for name, shape in shapes.items() if "running" not in name
  )
  lines = [f"{name} {list(shape)}\n" for name, shape in shapes.items()]
  digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
  return str(parameters), str(len(shapes)), digest


def read() -> dict[str, tuple[str, str, str]]:
  """Returns the rows of the table by name."""
  with TABLE.open() as file:
    return {name: tuple(rest) for name, *rest in list(csv.reader(file))[1:]}


def of_timm() -> Iterator[tuple[str, tuple[str, str, str]]]:
  """Yields the names and rows of the installed timm."""
  torch = importlib.import_module("torch")
  torch_models = importlib.import_module("tests.weights.torch_models")
  torch_models.load_torchvision()
  timm = importlib.import_module("timm")
  for module in MODULES:
    for name in timm.list_models(module=module):
      with torch.device("meta"):  # Without drawing weights.
        tensors = timm.create_model(name).state_dict()
      counters = {n for n in tensors if n.endswith("num_batches_tracked")}
      yield name, row({n: tensors[n].shape for n in tensors.keys() - counters})


def main() -> None:
  """Writes the table."""
  with TABLE.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((name, *rest) for name, rest in of_timm())


if __name__ == "__main__":
  main()
