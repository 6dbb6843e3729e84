"""What a network costs: its parameters and its multiply-adds."""

import math
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from flax_resnet.models.resnet import ResNet


def count_parameters(model: ResNet) -> int:
  """Returns how many numbers are trained; nothing is computed."""
  variables = model.lazy_init(jax.random.key(0), _images(32), train=False)
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_multiply_adds(model: ResNet, image_size: int) -> int:
  """Returns the multiply-adds of convolutions and dots for one image.

  This is what torchvision and timm call GFLOPS or GMACs (times 10^9); the
  papers' "FLOPs" are these as well. Counted in the computation itself, with
  products of padding; nothing is computed.

  Args:
    model: The network.
    image_size: Height and width of the image.
  """
  images = _images(image_size)
  variables = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
  )

  def logits(variables, x):
    return model.apply(variables, x, train=False)

  return _of_jaxpr(jax.make_jaxpr(logits)(variables, images).jaxpr)


def _images(size: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    features = params["dimension_numbers"].rhs_spec[0]
    each = kernel.size // kernel.shape[features]
    return equation.outvars[0].aval.size * each
  if name == "dot_general":
    ((contracted, _), _) = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    each = math.prod(shape[axis] for axis in contracted)
    return equation.outvars[0].aval.size * each
  inner = sum(_of_jaxpr(jaxpr) for jaxpr in _inner(params))
  return inner * params.get("length", 1) if name == "scan" else inner


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
  """Returns the computations inside a loop, a `jit` or a `custom_jvp`."""
  found = []
  for value in params.values():
    if isinstance(value, core.ClosedJaxpr):
      found.append(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
      found.append(value)
  return found
