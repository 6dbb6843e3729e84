"""How far the digits recipe on other numbers of devices drifts from one device.

    python benchmarks/devices.py        # on virtual CPU devices, two minutes

Prints the relative difference of the parameters after 20 steps, in float64, in
float32, and in float32 with softplus in place of ReLU.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pathlib
from unittest import mock

from flax import linen as nn
import jax
import numpy as np

from flax_resnet import sharding
from flax_resnet.training import load_recipe
from flax_resnet.training.run import prepare

RECIPE = pathlib.Path(__file__).parents[1] / "configs/digits.py"


def parameters(devices: int, dtype: str) -> np.ndarray:
  """Returns all parameters after 20 steps, as one vector."""
  types = [f"model.dtype={dtype}", f"model.param_dtype={dtype}"]
  mesh = sharding.make_mesh(jax.devices()[:devices])
  run = prepare(load_recipe(RECIPE, types).to_dict(), mesh)
  state = run.initial_state()
  calls = run.train_calls(0)
  while state.step < 20:  # One call of the recipe's does as many.
    state = run.train_step(state, next(calls)[0])
  leaves = jax.tree.leaves(jax.device_get(state.params))
  return np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64)


def main() -> None:
  for dtype, activation in (
    ("float64", nn.relu),
    ("float32", nn.relu),
    ("float32", nn.softplus),
  ):
    with (
      jax.enable_x64(dtype == "float64"),
      mock.patch.object(nn, "relu", activation),
    ):
      one = parameters(1, dtype)
      for devices in (2, 8):
        apart = np.linalg.norm(parameters(devices, dtype) - one)
        difference = apart / np.linalg.norm(one)
        print(
          f"{dtype} {activation.__name__:8} {devices} devices {difference:.1e}"
        )


if __name__ == "__main__":
  main()
