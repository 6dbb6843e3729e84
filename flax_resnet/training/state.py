"""All that a training run carries from one step to the next."""

from collections.abc import Mapping
from typing import Any, Self

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_resnet.models import ResNet
from flax_resnet.models.start import initial_variables
from flax_resnet.training import averaging, faults, metrics


class TrainState(struct.PyTreeNode):
  """The state after `step` completed updates.

  Random numbers are no part of it: they are a function of (seed, step).

  Attributes:
    step: Completed updates, int32 [].
    params: Of the network.
    batch_stats: BatchNorm's running statistics; empty without BatchNorm.
    opt_state: Of the optimizer.
    sums: Of the training metrics since they were last logged, so that a
      resumed run logs what an undisturbed one does.
    faults: The steps that were not finite.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  sums: metrics.Sums
  faults: faults.Faults

  @property
  def variables(self) -> dict[str, Any]:
    """What is trained, as `model.apply` takes it."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def evaluated(self) -> dict[str, Any]:
    """What evaluation and all users of the network take, likewise."""
    return self.variables

  def with_variables(self, variables: Mapping[str, Any]) -> Self:
    """Returns the state with others in the place of its variables."""
    return self.replace(**variables)


class AveragedState(TrainState):
  """The state of a run with `ema_decay`.

  Its own class, as Orbax would not restore an older checkpoint into a
  `TrainState` with one field more, not even one that is None.

  Attributes:
    average: Of the variables over the steps, see `averaging`.
  """

  average: Any

  @property
  def evaluated(self) -> dict[str, Any]:
    """The average."""
    return self.average

  def with_variables(self, variables: Mapping[str, Any]) -> Self:
    """As in `TrainState`; the average starts there anew."""
    return self.replace(**variables, average=averaging.start(variables))


def create_state(
  model: ResNet,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  seed: int,
  *,
  averaged: bool = False,
  freeze_trunk: bool = False,
) -> TrainState:
  """Returns the state before the first step.

  Parameters are drawn without running the network, so this takes no time
  whatever the depth.
  """
  variables = initial_variables(model, jax.random.key(seed), image_shape)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables.get("batch_stats", {}),
    opt_state=optimizer.init(trained_part(variables["params"], freeze_trunk)),
    sums=metrics.zeros(),
    faults=faults.none(),
  )
  if not averaged:
    return state
  return AveragedState(**vars(state), average=averaging.start(state.variables))


def trained_part(params: Any, freeze_trunk: bool) -> Any:
  """Returns the parameters that are trained: all, or those of the head."""
  return {"head": params["head"]} if freeze_trunk else params


def count_parameters(state: TrainState) -> int:
  """Returns how many numbers the network's parameters are."""
  return count(state.params)


def count(params: Any) -> int:
  """Returns how many numbers parameters are."""
  return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
