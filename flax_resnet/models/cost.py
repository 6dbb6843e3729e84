"""What a network costs: its parameters and its multiply-adds."""

import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a network costs.

  Attributes:
    parameters: How many numbers are trained.
    multiply_adds: Of convolutions and dots, for one image: what torchvision and
      timm call GFLOPS or GMACs (times 10^9), and the papers FLOPs.
    activations: Numbers that the convolutions put out for one image
      (Radosavovic et al. 2020, "Designing Network Design Spaces", section 3.1).
  """

  parameters: int
  multiply_adds: int
  activations: int


def cost(model: ResNet, image_size: int) -> Cost:
  """Returns what a network costs; nothing is computed.

  Multiply-adds are counted in the computation itself, with products of padding.

  Args:
    model: The network; with `scan=True` it costs the same and is counted
      faster.
    image_size: Height and width of the image.
  """

  def run(key, images):
    return model.init_with_output(key, images, train=False)

  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  jaxpr, (_, variables) = jax.make_jaxpr(run, return_shape=True)(
    jax.random.key(0), images
  )
  leaves = jax.tree.leaves(variables["params"])
  parameters = sum(math.prod(leaf.shape) for leaf in leaves)
  return Cost(parameters, *map(int, _of_jaxpr(jaxpr.jaxpr)))


def _of_jaxpr(jaxpr: core.Jaxpr) -> np.ndarray:
  """Returns multiply-adds and activations."""
  return sum(map(_of_equation, jaxpr.eqns), np.zeros(2, np.int64))


def _of_equation(equation: Any) -> np.ndarray:
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
  if name == "cond":  # What it is on most platforms comes last.
    return _of_jaxpr(params["branches"][-1].jaxpr)
  total = sum(map(_of_jaxpr, inner(params)), np.zeros(2, np.int64))
  return total * params.get("length", 1) if name == "scan" else total


def inner(params: dict[str, Any]) -> list[core.Jaxpr]:
  """Returns the computations inside a loop, a `jit` or a `custom_jvp`."""
  found = []
  for value in params.values():
    if isinstance(value, core.ClosedJaxpr):
      found.append(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
      found.append(value)
  return found
