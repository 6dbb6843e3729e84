"""Weights that a run starts from, in place of those that its seed draws."""

from typing import Any

import jax
import numpy as np

from flax_resnet.errors import InputError, reported_as
from flax_resnet.models.variables import (
  mismatch,
  named_leaves,
  variable_shapes,
  Variables,
)
from flax_resnet.training.setup import Run
from flax_resnet.training.state import TrainState
from flax_resnet.weights import load_pretrained, Pretrained


def start_from_weights(
  run: Run, drawn: TrainState
) -> tuple[TrainState, list[str]]:
  """Returns the state with the weights of `config.init_from` in it.

  Parameters and running statistics are those of the weights. A head with as
  many classes as the run has is kept, as in torchvision and timm; any other
  stays as the run's seed has drawn it.

  Args:
    run: the run; without `init_from` the state is returned as it is.
    drawn: the state that the seed draws, see `Run.drawn_state`.

  Returns:
    The state before the first step, and lines that say where it comes from.

  Raises:
    InputError: if the weights cannot be read, or are of another network.
  """
  weights = run.recipe.init_from
  if weights is None:
    return drawn, []
  loaded = _load(run, weights)
  params = dict(loaded.variables["params"])
  same_classes = loaded.model.num_classes == run.model.num_classes
  if not same_classes:
    params["head"] = drawn.params["head"]
  variables = _with_dtypes_of(
    drawn.variables, {**loaded.variables, "params": params}
  )
  trained = run.freezing.ever_trained(variables["params"])
  state = drawn.with_variables(variables).replace(
    opt_state=run.optimizer.init(trained)
  )
  head = (
    "their head" if same_classes else f"a new head: {_classes(run, loaded)}"
  )
  return state, [
    f"starts from the weights of {weights}, with {head}",
    *_other_normalization(run, loaded),
  ]


def _load(run: Run, weights: str) -> Pretrained:
  """Returns the weights, which are those of the run's trunk."""
  fields = {k: v for k, v in run.recipe.model.items() if k != "num_classes"}
  name = fields.pop("name")
  channels = run.dataset.image_shape[-1]
  with reported_as("config.init_from"):
    loaded = load_pretrained(weights, name, **fields)
    if loaded.channels != channels:
      raise InputError(
        f"config.init_from: the images have {channels} channels and the "
        f"weights want {loaded.channels}: choose other weights or other data"
      )
    # A workdir says more of its network than the recipe of this run may do.
    model = run.model.clone(num_classes=loaded.model.num_classes)
    expected, found = (
      {name: list(leaf.shape) for name, leaf in named_leaves(tree).items()}
      for tree in (variable_shapes(model, channels), loaded.variables)
    )
    if different := mismatch(expected, found):
      raise ValueError(f"the weights are not of this network: {different}")
  return loaded


def _with_dtypes_of(drawn: Variables, variables: Variables) -> Variables:
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


def _other_normalization(run: Run, loaded: Pretrained) -> list[str]:
  """Returns a warning if the run normalizes otherwise than they expect."""
  if (expected := loaded.preprocessing) is None:
    return []
  ours: dict[str, Any] = {
    key: tuple(run.recipe.augment[key]) for key in ("mean", "std")
  }
  theirs = {"mean": tuple(expected.mean), "std": tuple(expected.std)}
  if all(np.allclose(ours[key], theirs[key], atol=1e-3) for key in ours):
    return []
  return [
    f"warning: they expect config.augment.mean={theirs['mean']} and "
    f"config.augment.std={theirs['std']}, and the run has {ours['mean']} and "
    f"{ours['std']}"
  ]
