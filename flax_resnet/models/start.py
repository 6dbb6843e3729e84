"""The variables that a network starts with, without running it."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.core import Tracer
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp

from flax_resnet.models.resnet import ResNet


def initial_variables(
  model: ResNet, key: jax.Array, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Returns what `model.init` returns, the same bits.

  The network is traced, and of the trace only what draws the variables is run:
  nothing is compiled but the initialisers, whatever the depth.

  Args:
    model: The network.
    key: To draw with.
    image_shape: [h, w, c].
  """

  def init(key):
    images = jnp.zeros((1, *image_shape), model.dtype)
    return model.init(key, images, train=False)

  traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
  drawing, _ = partial_eval.dce_jaxpr(
    traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True
  )
  drawn = _evaluate(drawing, traced.consts, key)
  return jax.tree.unflatten(jax.tree.structure(shapes), drawn)


def _evaluate(jaxpr: core.Jaxpr, consts: list[Any], key: jax.Array) -> list:
  """As `jax.core.eval_jaxpr`, but for how the equations are compiled."""
  inputs = [*jaxpr.constvars, *jaxpr.invars]
  values = dict(zip(inputs, [*consts, key], strict=True))

  def value(of):
    return of.val if isinstance(of, core.Literal) else values[of]

  # What is traced by a caller is compiled with the caller's program.
  traced = isinstance(jnp.zeros(()), Tracer)
  compiled = _bound if traced or jax.default_backend() != "cpu" else _compiled
  for equation in jaxpr.eqns:
    run = compiled(equation.primitive, tuple(equation.params.items()))
    results = run(*map(value, equation.invars))
    many = equation.primitive.multiple_results
    values.update(
      zip(equation.outvars, results if many else [results], strict=True)
    )
  return [value(of) for of in jaxpr.outvars]


def _bound(primitive: core.Primitive, params: tuple) -> Callable:
  return functools.partial(primitive.bind, **dict(params))


@functools.cache
def _compiled(primitive: core.Primitive, params: tuple) -> Callable:
  # LLVM takes a third of a second to optimise each shape that is drawn once. Of
  # the lower levels, 0 rounds otherwise, and 1 gives the same bits.
  options = {"xla_backend_optimization_level": 1}
  return jax.jit(_bound(primitive, params), compiler_options=options)
