"""Weights that a run starts from, in place of those that its seed draws."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from flax_resnet import sharding
from flax_resnet.training.run import Run
from flax_resnet.training.schema import InputError, wrong_input
from flax_resnet.training.state import trained_part, TrainState
from flax_resnet.weights import hub, load_pretrained, Pretrained
from flax_resnet.weights.pretrained import checked


def warm_start(
  run: Run, state: TrainState
) -> tuple[TrainState, tuple[str, ...]]:
  """Returns the state with the weights of `config.init_from` in it.

  Parameters and running statistics are those of the weights. A head with as
  many classes as the run has is kept, as in torchvision and timm; any other
  stays as the run's seed has drawn it.

  Args:
    run: The run; without `init_from` its state is returned as it is.
    state: What the seed draws, see `Run.initial_state`.

  Returns:
    The state before the first step, and what there is to say of it, in lines.

  Raises:
    InputError: When the weights cannot be read, or are of another network.
  """
  weights = run.recipe.init_from
  if weights is None:
    return state, ()
  loaded = _load(run, weights)
  params = dict(loaded.variables["params"])
  kept = loaded.model.num_classes == run.model.num_classes
  if not kept:
    params["head"] = state.params["head"]
  variables = _as_before(
    {**loaded.variables, "params": params}, state.variables
  )
  variables = sharding.replicate(variables, run.mesh)
  trained = trained_part(variables["params"], run.recipe.freeze_trunk)
  opt_state = sharding.replicate(run.optimizer.init(trained), run.mesh)
  head = "their head" if kept else f"a new head: {_classes(run, loaded)}"
  origin = f"starts from the weights of {weights}, with {head}"
  return (
    state.with_variables(variables).replace(opt_state=opt_state),
    (origin, *_other_colours(run, loaded)),
  )


def _load(run: Run, weights: str) -> Pretrained:
  """Returns the weights, which are those of the run's trunk."""
  fields = {k: v for k, v in run.recipe.model.items() if k != "num_classes"}
  name = fields.pop("name")
  path = weights
  if not weights.startswith(hub.PREFIX):
    path = pathlib.Path(os.path.expanduser(weights))
  channels = run.dataset.image_shape[-1]
  with wrong_input("config.init_from"):
    loaded = load_pretrained(path, name, **fields)
    if loaded.channels != channels:
      raise InputError(
        f"config.init_from: the images have {channels} channels and the "
        f"weights want {loaded.channels}: choose other weights or other data"
      )
    # A workdir says more of its network than the recipe of this run may do.
    checked(
      loaded.variables, run.model.clone(num_classes=loaded.model.num_classes)
    )
  return loaded


def _as_before(variables: dict[str, Any], drawn: dict[str, Any]) -> Any:
  """Returns variables in the types in which the run keeps them."""
  return {
    collection: jax.tree.map(
      lambda new, old: new.astype(old.dtype), variables.get(collection, {}), old
    )
    for collection, old in drawn.items()
  }


def _classes(run: Run, loaded: Pretrained) -> str:
  if not (classes := loaded.model.num_classes):
    return "they have none"
  return f"they have {classes:,} classes and the run {run.model.num_classes:,}"


def _other_colours(run: Run, loaded: Pretrained) -> list[str]:
  """Says in a line if the run normalises otherwise than the weights expect."""
  if (expected := loaded.preprocessing) is None:
    return []
  ours = {key: tuple(run.recipe.augment[key]) for key in ("mean", "std")}
  theirs = {"mean": tuple(expected.mean), "std": tuple(expected.std)}
  if all(np.allclose(ours[key], theirs[key], atol=1e-3) for key in ours):
    return []
  return [
    f"warning: they expect config.augment.mean={theirs['mean']} and "
    f"config.augment.std={theirs['std']}, and the run has {ours['mean']} and "
    f"{ours['std']}"
  ]
