"""The variables that a network starts with, without running it."""

from typing import Any

import jax
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
  closed = core.ClosedJaxpr(drawing, traced.consts)
  return jax.tree.unflatten(
    jax.tree.structure(shapes), core.jaxpr_as_fun(closed)(key)
  )
