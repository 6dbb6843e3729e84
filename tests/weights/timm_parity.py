"""Every residual network of timm beside ours, at full length.

`python -m tests.weights.timm_parity` writes the table of the differences, a
network after the other, and goes on where it was stopped: last with torch
2.13.0, timm 1.0.31 and JAX 0.10.2 on CPU. It takes hours, and 16 GB of memory.
"""

from collections.abc import Mapping
import csv
import pathlib
import re

import numpy as np

import flax_resnet as fr
from tests.weights import cases, timm_names

TABLE = pathlib.Path(__file__).with_suffix(".csv")
COLUMNS = ("name", "dtype", "logits", "maps")
# Of max |difference| over the standard deviation of the output.
LIMITS = {"float32": 1e-4, "float64": 1e-9}


def case_of(name: str, dtype: str) -> cases.Case:
  """Returns the case of a network of timm, of ten classes."""
  names = "timm_v2" if name.startswith("resnetv2") else "torchvision"
  sizes = {}
  if fr.create_model(name).downsampling == "average":
    # timm's pools of 2x2 need maps that they halve without a remainder.
    sizes = {"sides": (64, 65), "wider": 32}
  return cases.whole(name, names, dtype=dtype, **sizes)


def filled(case: cases.Case) -> dict[str, np.ndarray]:
  """Returns a state_dict as `cases.filled` does, with small F(x).

  Through a hundred random blocks, numbers would overflow.
  """
  state_dict = cases.filled(cases.our_shapes(case))
  for name, array in state_dict.items():
    if re.search(r"\.(bn3|conv3)\.weight$", name):
      array *= 0.3
  return state_dict


def differences(
  ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[float, float]:
  """Returns the largest differences of the logits, and of the maps.

  Of each output, max |difference| over its standard deviation.
  """
  assert ours.keys() == theirs.keys()
  each = {
    key: float(np.abs(ours[key] - value).max() / value.std())
    for key, value in theirs.items()
  }
  groups = {True: [0.0], False: [0.0]}
  for key, difference in each.items():
    groups[key.startswith("logits")].append(difference)
  # np.max passes on NaN.
  return float(np.max(groups[True])), float(np.max(groups[False]))


def compare(name: str) -> tuple[str, float, float]:
  """Returns the dtype of the comparison and the differences.

  In float32; where they are above the limit, in float64, which tells the
  rounding of many layers from an error. In both, `to_torch` of `from_torch` is
  the same bits, and timm loads them strictly.
  """
  from tests.weights import torch_side

  found = float("nan"), float("nan")
  for dtype, limit in LIMITS.items():
    case = case_of(name, dtype)
    state_dict = filled(case)
    if dtype == "float32":
      assert_same_bits(case, state_dict)
    ours = cases.our_outputs(case, state_dict, train=False)
    theirs = torch_side.their_outputs(case, state_dict, train=False)
    found = differences(ours, theirs)
    if max(found) <= limit:
      return dtype, *found
  return "float64", *found


def assert_same_bits(case: cases.Case, state_dict) -> None:
  model = case.network()
  back = fr.to_torch(fr.from_torch(state_dict, model), model)
  assert back.keys() == state_dict.keys()
  for name, array in state_dict.items():
    np.testing.assert_array_equal(back.pop(name), array, strict=True)


def main() -> None:
  """Writes the rows that the table does not have yet."""
  done = set()
  if TABLE.exists():
    with TABLE.open() as file:
      done = {name for name, *_ in list(csv.reader(file))[1:]}
  with TABLE.open("a", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    if not done:
      writer.writerow(COLUMNS)
    rows = {n: int(r[0]) for n, r in timm_names.read().items() if n not in done}
    for name in sorted(rows, key=lambda name: rows[name]):
      dtype, *found = compare(name)
      writer.writerow([name, dtype, *(f"{value:.1e}" for value in found)])
      file.flush()


if __name__ == "__main__":
  main()
