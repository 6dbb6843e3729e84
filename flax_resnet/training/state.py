"""The state that a training run carries from one step to the next."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from flax_resnet.models import ResNet
from flax_resnet.models.norms import at_least_float32
from flax_resnet.models.variables import initial_variables
from flax_resnet.training import metrics
from flax_resnet.training.freezing import Freezing, NOTHING

# A jax.Array; where JAX rebuilds a tree, its description, or anything else.
Leaf = Any


class NonFinite(struct.PyTreeNode):
  """The steps of a run whose loss, gradient or statistics were not finite.

  Attributes:
    count: number of such steps, int32 [].
    step: the latest of them, from 1, int32 [].
    loss: loss of that step, float32 [].
    norm: norm of its gradient over all parameters, float32 [].
  """

  count: Leaf
  step: Leaf
  loss: Leaf
  norm: Leaf

  @classmethod
  def none(cls) -> "NonFinite":
    """Returns the record of a run that has had none."""
    dtypes = (np.int32, np.int32, np.float32, np.float32)
    return cls(*(jnp.zeros((), dtype) for dtype in dtypes))


class TrainState(struct.PyTreeNode):
  """The state after `step` completed updates.

  Random numbers are no part of it: they are a function of (seed, step).

  Attributes:
    step: number of completed updates, int32 [].
    params: parameters of the network.
    batch_stats: running statistics of BatchNorm; empty without BatchNorm.
    opt_state: state of the optimizer.
    average: moving average of params and batch_stats, {"params": …,
      "batch_stats": …}; empty in a run without `ema_decay`.
    sums: sums of the training metrics since they were last logged, so that a
      resumed run logs the rows of an undisturbed one.
    nonfinite: record of the steps that were not finite.
  """

  step: Leaf
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any
  sums: Any
  nonfinite: Any

  @property
  def variables(self) -> dict[str, Any]:
    """The variables that are trained, as `model.apply` takes them."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def eval_variables(self) -> dict[str, Any]:
    """The variables that are evaluated: the average, if there is one."""
    return self.average or self.variables

  def with_variables(self, variables: Mapping[str, Any]) -> "TrainState":
    """Returns the state with other variables; an average starts from them."""
    average = start_average(variables) if self.average else {}
    return self.replace(**variables, average=average)


def create_state(
  model: ResNet,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  seed: int,
  *,
  averaged: bool = False,
  freezing: Freezing = NOTHING,
) -> TrainState:
  """Returns the state before the first step, on the default device.

  Args:
    model: the network.
    optimizer: optimizer of the trained parameters.
    image_shape: shape of an image, [h, w, c].
    seed: seed that the parameters are drawn from.
    averaged: whether there is a moving average of the variables.
    freezing: what of the network is not trained; default nothing.
  """
  variables = initial_variables(model, jax.random.key(seed), image_shape)
  variables = {"batch_stats": {}, **variables}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    opt_state=optimizer.init(freezing.ever_trained(variables["params"])),
    average=start_average(variables) if averaged else {},
    sums=metrics.zeros(),
    nonfinite=NonFinite.none(),
    **variables,
  )


def start_average(variables: Any) -> Any:
  """Returns the moving average before the first step: a copy of the variables.

  Polyak & Juditsky 1992; with weights that fall exponentially as in Szegedy et
  al. 2016, section 8 (arXiv:1512.00567). It starts at the variables that the
  run starts from, as timm's `ModelEma`, in float32 or better: in bfloat16, an
  average that keeps 0.999 of itself would never move.
  """
  # A copy also because a step takes the memory of either.
  return jax.tree.map(
    lambda x: jnp.array(x, at_least_float32(x.dtype), copy=True), variables
  )


def update_average(
  average: Any,
  variables: Any,
  step: jax.Array,
  *,
  decay: float,
  every: int,
  warmup: bool = False,
) -> Any:
  """Returns the moving average after a step.

  BatchNorm's running statistics are averaged with the parameters that they
  belong to.

  Args:
    average: average before.
    variables: variables after this step.
    step: number of completed steps, int32 [].
    decay: share of the average that is kept, in [0, 1): new = decay * old + (1
      - decay) * variables.
    every: number of steps between two updates; at others it stays as it is.
    warmup: whether the average keeps less of itself at first, see
      `warm_decay`; default False.
  """

  def move(average):
    precise = jax.tree.map(lambda x, a: x.astype(a.dtype), variables, average)
    kept = warm_decay(step // every, decay) if warmup else decay
    return optax.incremental_update(precise, average, 1 - kept)

  if every == 1:
    return move(average)
  return lax.cond(step % every == 0, move, lambda average: average, average)


def warm_decay(updates: jax.Array, decay: float) -> jax.Array:
  """Returns the share of itself that an average keeps at its n-th update.

  It is min(decay, 1 - n^(-2/3)): that of timm's `ModelEmaV3(use_warmup=True)`.
  The first update takes the variables, so that the average does not remember
  those that were drawn.

  Args:
    updates: number of the update, from 1, int32 [].
    decay: largest share, in [0, 1).
  """
  before = (updates - 1).astype(jnp.float32)
  return jnp.minimum(decay, 1 - (1 + before) ** (-2 / 3))
