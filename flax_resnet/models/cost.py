"""The cost of a network: its parameters and its multiply-adds.

`costs.csv` holds those of all names, which to count anew takes a minute:
`python -m tests.models.costs` writes it.
"""

import csv
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.resnet import ResNet
from flax_resnet.models.variables import count_parameters
from flax_resnet.schema import height_and_width, ImageSize

TABLE = pathlib.Path(__file__).with_name("costs.csv")


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of a network.

  Attributes:
    parameters: number of parameters.
    multiply_adds: number of multiply-adds of convolutions and dots for one
      image: the FLOPs of the papers, and 10^9 times the GFLOPS of torchvision
      and the GMACs of timm.
    activations: number of outputs of the convolutions for one image
      (Radosavovic et al. 2020, "Designing Network Design Spaces", section 3.1).
  """

  parameters: int
  multiply_adds: int
  activations: int


def cost(model: ResNet, image_size: ImageSize) -> Cost:
  """Returns the cost of a network, without running it.

  Multiply-adds are counted in its traced computation; products with the padding
  count too.

  Args:
    model: the network.
    image_size: height and width of the image in pixels, one number or both.
  """
  if not model.block_widths:
    model = model.clone(scan=True)  # Costs the same and is counted faster.

  def run(key, images):
    return model.init_with_output(key, images, train=False)

  shape = (1, *height_and_width(image_size), 3)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  jaxpr, (_, variables) = jax.make_jaxpr(run, return_shape=True)(
    jax.random.key(0), images
  )
  parameters = count_parameters(variables["params"])
  return Cost(parameters, *map(int, _count(jaxpr.jaxpr)))


@functools.cache
def known_costs() -> dict[str, Cost]:
  """Returns the costs of the networks by name, at `usual_size`."""
  with TABLE.open(newline="") as file:
    return {
      row.pop("name"): Cost(**{key: int(n) for key, n in row.items()})
      for row in csv.DictReader(file)
    }


def usual_size(model: ResNet) -> int:
  """Returns the height and width of its images in papers, in pixels."""
  return 32 if model.stem == "cifar" else 224


def _count(jaxpr: core.Jaxpr) -> np.ndarray:
  """Returns multiply-adds and activations, [2]."""
  return sum(map(_count_equation, jaxpr.eqns), np.zeros(2, np.int64))


def _count_equation(equation: Any) -> np.ndarray:
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    features = params["dimension_numbers"].rhs_spec[0]
    each = kernel.size // kernel.shape[features]
    size = equation.outvars[0].aval.size
    return np.array([size * each, size])
  if name == "dot_general":
    ((contracted, _), _) = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    each = math.prod(shape[axis] for axis in contracted)
    return np.array([equation.outvars[0].aval.size * each, 0])
  if name == "cond":
    # The last branch of `platform_dependent` is its default.
    return _count(params["branches"][-1].jaxpr)
  total = sum(map(_count, _inner(params)), np.zeros(2, np.int64))
  return total * params.get("length", 1) if name == "scan" else total


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
  """Returns the jaxprs inside a loop, a `jit` or a `custom_jvp`."""
  found = []
  for value in params.values():
    if isinstance(value, core.ClosedJaxpr):
      found.append(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
      found.append(value)
  return found
