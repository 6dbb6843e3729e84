"""Between the parameters of `scan=True` and those of single blocks.

A loop over the blocks 2 to n of a stage keeps their parameters in one tree,
`stage1_blocks`, stacked along a new first axis; a network without the loop has
`stage1_block2` to `stage1_block<n>`.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

Variables = dict[str, Any]


def stack(variables: Mapping[str, Any]) -> Variables:
  """Returns variables for `scan=True`, from those of single blocks."""
  return {collection: _stack(tree) for collection, tree in variables.items()}


def unstack(variables: Mapping[str, Any]) -> Variables:
  """Returns variables of single blocks, from those of `scan=True`."""
  return {collection: _unstack(tree) for collection, tree in variables.items()}


def _stack(tree: Mapping[str, Any]) -> Variables:
  stages: dict[str, dict[int, Any]] = {}
  stacked = {}
  for name, value in tree.items():
    match = re.fullmatch(r"(stage\d+)_block(\d+)", name)
    if match and match[2] != "1":
      stages.setdefault(match[1], {})[int(match[2])] = value
    else:
      stacked[name] = value
  for stage, blocks in stages.items():
    in_order = [blocks[number] for number in sorted(blocks)]
    stacked[f"{stage}_blocks"] = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *in_order
    )
  return stacked


def _unstack(tree: Mapping[str, Any]) -> Variables:
  single = {}
  for name, value in tree.items():
    match = re.fullmatch(r"(stage\d+)_blocks", name)
    if not match:
      single[name] = value
      continue
    for number in range(len(jax.tree.leaves(value)[0])):
      single[f"{match[1]}_block{number + 2}"] = jax.tree.map(
        lambda leaf, number=number: leaf[number], value
      )
  return single
