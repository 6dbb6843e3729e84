"""A network with trained weights, in one call.

Weights are read, renamed, fitted to the network, and reported where they do not
fit: in this order, `files.read` the first and `state_dict.fit` the others.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from flax_resnet.errors import WeightsError
from flax_resnet.models import create_model, ResNet
from flax_resnet.models.variables import (
  image_channels,
  Variables,
  with_new_head,
)
from flax_resnet.weights import files, hub
from flax_resnet.weights.files import Source
from flax_resnet.weights.preprocessing import Preprocessing
from flax_resnet.weights.state_dict import fit


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network, its weights, and what they expect.

  Attributes:
    model: the network.
    variables: {"params": ..., "batch_stats": ...}.
    preprocessing: preprocessing of images; None if unknown.
    class_names: names of the classes by label; empty if unknown.
  """

  model: ResNet
  variables: Variables
  preprocessing: Preprocessing | None = None
  class_names: tuple[str, ...] = ()

  @property
  def channels(self) -> int:
    """Number of channels of the images that the network takes."""
    return image_channels(self.variables["params"])


def from_pretrained(
  weights: str | pathlib.Path, model: str | None = None, **fields: Any
) -> tuple[ResNet, Variables]:
  """Returns a network and its weights; `load_pretrained` returns more of them.

  Args:
    weights: a .safetensors or .pth file, a Flax checkpoint, the workdir of a
      run or one of its checkpoints, or a repository of the Hugging Face hub:
      "hf-hub:owner/repository".
    model: one of `list_models()`; a workdir says it itself, and a hub
      repository mostly does.
    **fields: fields of the network, as in `create_model`. For another
      `num_classes` than that of the weights, a new head is drawn.

  Raises:
    WeightsError: if the weights cannot be read or do not fit the model.
  """
  loaded = load_pretrained(weights, model, **fields)
  return loaded.model, loaded.variables


def load_pretrained(
  weights: str | pathlib.Path, model: str | None = None, **fields: Any
) -> Pretrained:
  """As `from_pretrained`, with preprocessing and class names."""
  source = _source(weights)
  name = model or source.model
  if name is None:
    raise WeightsError(
      f'{weights} does not say of which network: give model="…"'
    )
  fields = {**source.fields, **fields}
  network = create_model(name, **fields)
  variables = fit(files.read(source.path), network, any_head=True)
  head = variables["params"].get("head")
  classes = head["kernel"].shape[-1] if head else 0
  if "num_classes" not in fields:
    network = network.clone(num_classes=classes)
  if network.num_classes != classes:
    print(
      f"the weights have {classes} classes and the model "
      f"{network.num_classes}: its head is initialized anew"
    )
    variables = with_new_head(variables, network, jax.random.key(0))
    return Pretrained(network, variables, source.preprocessing)
  names = source.class_names
  # Not each class has a name in every repository.
  names = names if len(names) == classes else ()
  return Pretrained(network, variables, source.preprocessing, names)


def _source(weights: str | pathlib.Path) -> Source:
  """Returns where weights are, and what a hub or a run says of them."""
  if str(weights).startswith(hub.PREFIX):
    return hub.fetch(str(weights))
  path = pathlib.Path(os.path.expanduser(weights))
  if (path / "config.json").is_file():
    path = files.find_checkpoint(path)
  if not (path / "about").is_dir():
    return Source(path)
  config, names = files.read_about(path)
  try:
    fields = dict(config["model"])
    name = fields.pop("name")
    create_model(name, **fields)  # Refuses what no network has.
    preprocessing = Preprocessing.of_run(config)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise WeightsError(
      f"{path / 'about'} is not that of a run: {error!r:.300}"
    ) from error
  return Source(path, name, fields, preprocessing, names)
