"""A network with trained weights, in one call.

Weights are read, renamed, fitted to the network, and reported where they do not
fit: in this order, `files.read` the first and `state_dict.fit` the others, with
`wrappers` for what training code adds to names.
"""

import dataclasses
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet import bucket
from flax_resnet.errors import suggestion, WeightsError
from flax_resnet.models import create_model, list_models, ResNet, tags
from flax_resnet.models.layers import at_least_float32
from flax_resnet.models.variables import (
  image_channels,
  Variables,
  with_new_head,
)
from flax_resnet.weights import files, hub, remote
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
    multi_label: whether an image may have several of the classes.
  """

  model: ResNet
  variables: Variables
  preprocessing: Preprocessing | None = None
  class_names: tuple[str, ...] = ()
  multi_label: bool = False

  @property
  def channels(self) -> int:
    """Number of channels of the images that the network takes."""
    return image_channels(self.variables["params"])


def from_pretrained(
  weights: str | pathlib.Path,
  model: str | None = None,
  *,
  in_channels: int | None = None,
  ema: bool = True,
  **fields: Any,
) -> tuple[ResNet, Variables]:
  """Returns a network and its weights; `load_pretrained` returns more of them.

  Args:
    weights: a tag, "resnet50.a1_in1k" of the hub or "cifar_resnet20.cifar10"
      in this package, or a name for its default one; a weight file, see
      `files.read`; a Flax checkpoint; the workdir of a run or one of its
      checkpoints; a repository of the Hugging Face hub,
      "hf-hub:owner/repository", or a clone of one; a URL of any of these,
      gs:// or s3://. What is there as a path is taken as one.
    model: one of `list_models()`; a tag and a workdir say it themselves, and a
      hub repository mostly does.
    in_channels: number of channels of the images; None (default) for that of
      the weights. The kernel of the first convolution is summed for one, else
      repeated and scaled, as in timm.
    ema: whether to take the moving average of a training run where the weights
      have one; default True.
    **fields: fields of the network, as in `create_model`. For another
      `num_classes` than that of the weights, a new head is drawn.

  Raises:
    WeightsError: if the weights cannot be read or do not fit the model.
  """
  loaded = load_pretrained(
    weights, model, in_channels=in_channels, ema=ema, **fields
  )
  return loaded.model, loaded.variables


def load_pretrained(
  weights: str | pathlib.Path,
  model: str | None = None,
  *,
  in_channels: int | None = None,
  ema: bool = True,
  **fields: Any,
) -> Pretrained:
  """As `from_pretrained`, with preprocessing and class names."""
  source = find(weights)
  if source.tag and source.tag != str(weights):
    files.say(f"{weights}: the default weights, {source.tag}")
  name = _name(weights, source, model)
  fields = {**source.fields, **fields}
  network = create_model(name, **fields)
  variables = fit(files.read(source.path, ema=ema), network, any_head=True)
  preprocessing = source.preprocessing
  head = variables["params"].get("head")
  classes = head["kernel"].shape[-1] if head else 0
  if in_channels is not None:
    variables = _with_channels(variables, in_channels)
    preprocessing = preprocessing and preprocessing.with_channels(in_channels)
  if "num_classes" not in fields:
    network = network.clone(num_classes=classes)
  if network.num_classes != classes:
    files.say(
      f"the weights have {classes} classes and the model "
      f"{network.num_classes}: its head is initialized anew"
    )
    variables = with_new_head(variables, network, jax.random.key(0))
    return Pretrained(network, variables, preprocessing)
  names = source.class_names if classes else ()
  if names and len(names) != classes:
    files.say(
      f"{weights} names {len(names)} classes and has {classes}: they are "
      "called by their numbers"
    )
    names = ()
  return Pretrained(
    network, variables, preprocessing, names, source.multi_label
  )


def find(weights: str | pathlib.Path) -> Source:
  """Returns where weights are, and what a tag, a hub or a run says of them.

  Args:
    weights: as in `from_pretrained`; what the hub has is fetched.
  """
  if str(weights).startswith(hub.PREFIX):
    return _checked(hub.fetch(str(weights)), weights)
  if bucket.is_url(weights):
    weights = remote.fetch(str(weights))
  path = pathlib.Path(os.path.expanduser(weights))
  if path.name == "checkpoints" and (path.parent / "config.json").is_file():
    path = path.parent
  if _is_name(str(weights)) and not path.exists():
    return _published(str(weights))
  if not path.exists():
    raise WeightsError(f"there is no weight file {path}")
  if (path / "checkpoints").is_dir():
    path = files.find_checkpoint(path)
  elif hub.is_clone(path):
    return _checked(hub.read_clone(path), weights)
  elif (path / "config.json").is_file():
    raise WeightsError(f"workdir {path} has no checkpoint yet")
  if not (path / "about").is_dir():
    return Source(path)
  config, names = files.read_about(path)
  try:
    fields = dict(config["model"])
    name = fields.pop("name")
    create_model(name, **fields)  # Refuses what no network has.
    preprocessing = Preprocessing.of_run(config)
  except (
    ArithmeticError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    raise WeightsError(
      f"{path / 'about'} is not that of a run: {error!r:.300}"
    ) from error
  several = files.is_multi_label(path)
  return Source(path, name, fields, preprocessing, names, several, of_run=True)


def _checked(source: Source, weights: str | pathlib.Path) -> Source:
  """Returns what a hub repository says, if there is such a network."""
  try:
    if source.fields:  # `save_pretrained` has written it.
      create_model(str(source.model), **source.fields)
  except (TypeError, ValueError) as error:
    raise WeightsError(
      f"{weights} has a config that cannot be: {error!r:.200}"
    ) from error
  return source


def _is_name(text: str) -> bool:
  """Whether a text is a name or tag, or what may be meant as one."""
  is_file = text.lower().endswith((".safetensors", ".json", *files.PYTORCH))
  return not is_file and bool(re.fullmatch(r"\w{1,99}(\.\w{1,99})?", text))


def _published(name: str) -> Source:
  """Returns the weights of a tag, or the default ones of a network."""
  model = name.partition(".")[0]
  if model not in list_models():
    # There are more than a hundred.
    otherwise = "python -m flax_resnet models has the names"
    advice = suggestion(model, list_models(), otherwise)
    raise WeightsError(
      f"there is no file or folder {name}, and no model {model!r}: {advice}"
    )
  tag = tags.find(name)
  if tag.folder:
    return dataclasses.replace(hub.read_clone(tag.folder), tag=tag.name)
  source = hub.fetch(f"{hub.PREFIX}{tag.repository}")
  preprocessing = source.preprocessing or Preprocessing(
    image_size=tag.test_image_size,
    crop_fraction=tag.test_crop_fraction,
    interpolation=tag.interpolation,
    mean=tag.mean,
    std=tag.std,
  )
  return dataclasses.replace(
    source,
    model=source.model or model,
    preprocessing=preprocessing,
    tag=tag.name,
  )


def _name(
  weights: str | pathlib.Path, source: Source, model: str | None
) -> str:
  """Returns the name of the network that weights are loaded into."""
  if model is None and source.model is None:
    raise WeightsError(
      f'{weights} does not say of which network: give model="…"'
    )
  # Networks that compute something else may have the same tensors: only the
  # name tells them apart. A run may start from those of another one.
  known = {*list_models(), *tags.timm_models()}
  if (
    model is not None
    and source.model in known
    and model.partition(".")[0] != source.model
    and not source.of_run
  ):
    raise WeightsError(
      f"{weights} has the weights of {source.model}, and not of {model}: the "
      f"model has to be {source.model}"
    )
  return model or str(source.model)


def _with_channels(variables: Variables, channels: int) -> Variables:
  """Returns variables for images of other channels, as timm adapts them."""
  if channels < 1:
    raise WeightsError(f"in_channels is {channels}: use 1 or more")
  stem = dict(variables["params"]["stem"])
  layer = "conv" if "conv" in stem else "conv1"
  kernel = stem[layer]["kernel"]
  if (found := kernel.shape[2]) == channels:
    return variables
  dtype, kernel = kernel.dtype, kernel.astype(at_least_float32(kernel.dtype))
  if channels == 1:
    kernel, how = kernel.sum(2, keepdims=True), "summed"
  else:
    repeated = jnp.tile(kernel, (1, 1, -(-channels // found), 1))
    kernel = repeated[:, :, :channels] * (found / channels)
    how = f"repeated and scaled by {found}/{channels}"
  files.say(
    f"the weights take {found} channels and the model {channels}: the kernel "
    f"of the first convolution is {how}"
  )
  stem[layer] = {**stem[layer], "kernel": kernel.astype(dtype)}
  return {**variables, "params": {**variables["params"], "stem": stem}}
