"""A network with published weights, in one call."""

import dataclasses
import pathlib
from typing import Any

import jax

from flax_resnet.models import create_model, ResNet
from flax_resnet.models.start import initial_variables
from flax_resnet.weights import files, hub
from flax_resnet.weights.documents import read_object
from flax_resnet.weights.names import recognise
from flax_resnet.weights.preprocessing import Preprocessing
from flax_resnet.weights.state_dict import (
  from_torch,
  Variables,
  WeightsError,
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network, its weights, and what they expect.

  Attributes:
    model: The network.
    variables: {"params": ..., "batch_stats": ...}.
    preprocessing: What the weights expect of an image; None if unknown.
    class_names: By label; empty if unknown.
  """

  model: ResNet
  variables: Variables
  preprocessing: Preprocessing | None = None
  class_names: tuple[str, ...] = ()

  @property
  def channels(self) -> int:
    """Channels of the images that the network takes."""
    return channels(self.variables)


def from_pretrained(
  weights: str | pathlib.Path, model: str | None = None, **fields: Any
) -> tuple[ResNet, Variables]:
  """Returns a network and its weights; `load_pretrained` says more of them.

  Args:
    weights: A .safetensors or .pth file, a Flax checkpoint, the workdir of a
      run, or a repository of the Hugging Face hub: "hf-hub:owner/repository".
    model: One of `list_models()`; a workdir says it itself, and a hub
      repository mostly does.
    **fields: As in `create_model`. With another `num_classes` than that of the
      weights, the head is initialised anew.

  Raises:
    WeightsError: When the weights cannot be read or do not fit the model.
  """
  loaded = load_pretrained(weights, model, **fields)
  return loaded.model, loaded.variables


def load_pretrained(
  weights: str | pathlib.Path, model: str | None = None, **fields: Any
) -> Pretrained:
  """As `from_pretrained`, with preprocessing and class names."""
  of_run = None
  if str(weights).startswith(hub.PREFIX):
    entry = hub.fetch(str(weights))
    path, name = entry.path, model or entry.model
  else:
    entry, path, name = None, pathlib.Path(weights), model
    of_run = _of_run(path)
    if of_run:
      name, fields = name or of_run.name, {**of_run.fields, **fields}
  if name is None:
    raise WeightsError(
      f'{weights} does not say of which network: give model="…"'
    )
  if path.is_dir():
    variables = files.read_checkpoint(path)
    head = variables["params"].get("head")
    classes = head["kernel"].shape[-1] if head else 0
    network = create_model(name, **{"num_classes": classes, **fields})
    fresh = network.num_classes != classes
    if fresh:
      variables = _with_fresh_head(variables, network, classes)
    variables = checked(variables, network)
    if of_run is None:
      return Pretrained(network, variables)
    names = () if fresh else files.class_names_of_run(path)
    names = _for_each(network, names)
    return Pretrained(network, variables, of_run.preprocessing, names)
  tensors = files.read(path)
  network, head_key = _fit_head(tensors, name, fields)
  variables = from_torch(tensors, network, head_key=head_key)
  if entry is None:
    return Pretrained(network, variables)
  names = () if head_key is not None else _for_each(network, entry.class_names)
  return Pretrained(network, variables, entry.preprocessing, names)


def _for_each(model: ResNet, names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of classes, or none where not each class has one."""
  return names if len(names) == model.num_classes else ()


@dataclasses.dataclass(frozen=True)
class _Run:
  """What the config of a run says of its network."""

  name: str
  fields: dict[str, Any]
  preprocessing: Preprocessing


def _of_run(path: pathlib.Path) -> _Run | None:
  """Returns what a config says, if this is a workdir."""
  config = path / "config.json"
  if not config.is_file():
    return None
  try:
    found = read_object(config)
    fields = dict(found["model"])
    name = fields.pop("name")
    create_model(name, **fields)  # It knows what cannot be.
    return _Run(name, fields, Preprocessing.of_run(found))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise WeightsError(
      f"{config} is not that of a run: {error!r:.300}"
    ) from error


def _fit_head(
  tensors: dict[str, Any], name: str, fields: dict[str, Any]
) -> tuple[ResNet, jax.Array | None]:
  """Returns the network, and a key if its head is to be drawn.

  Without `num_classes`, the network has as many classes as the file.
  """
  plain = {key.removeprefix("module."): key for key in tensors}
  head = plain.get(f"{recognise(plain).head}.weight")
  if head is None:
    return create_model(name, **{"num_classes": 0, **fields}), None
  classes = tensors[head].shape[0]
  wanted = fields.get("num_classes", classes)
  network = create_model(name, **{**fields, "num_classes": wanted})
  if wanted in (0, classes):
    return network, None
  _say_fresh(classes, wanted)
  return network, jax.random.key(0)


def _with_fresh_head(
  variables: Variables, model: ResNet, classes: int
) -> Variables:
  """Returns variables with the head that the model wants, if it wants one."""
  params = {k: v for k, v in variables["params"].items() if k != "head"}
  if model.num_classes:
    _say_fresh(classes, model.num_classes)
    shape = (32, 32, channels(variables))
    drawn = initial_variables(model, jax.random.key(0), shape)
    params["head"] = drawn["params"]["head"]
  return {**variables, "params": params}


def _say_fresh(classes: int, wanted: int) -> None:
  print(
    f"the weights have {classes} classes and the model {wanted}: its head is "
    "initialised anew"
  )


def channels(variables: Variables) -> int:
  """Returns how many channels the images have that the stem takes."""
  stem = variables["params"].get("stem", {})
  kernel = (stem.get("conv") or stem.get("conv1") or {}).get("kernel")
  return 3 if kernel is None else kernel.shape[2]


def checked(variables: Variables, model: ResNet) -> Variables:
  """Returns the variables, whose shapes are those of the model.

  Raises:
    WeightsError: When they are not; it names those that differ.
  """
  shape = (1, 32, 32, channels(variables))
  images = jax.ShapeDtypeStruct(shape, model.dtype)

  def shapes(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
      for path, leaf in leaves
    }

  wanted = shapes(
    jax.eval_shape(
      lambda key: model.lazy_init(key, images, train=False), jax.random.key(0)
    )
  )
  found = shapes(variables)
  wrong = sorted(
    name
    for name in wanted.keys() | found.keys()
    if wanted.get(name) != found.get(name)
  )
  if wrong:
    raise WeightsError(
      "the checkpoint is not of this model: "
      + ", ".join(
        f"{name} is {found.get(name, 'missing')} instead of "
        f"{wanted.get(name, 'absent')}"
        for name in wrong[:5]
      )
      + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    )
  return variables
