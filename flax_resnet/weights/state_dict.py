"""From the arrays of a file to the variables of a network, and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.errors import listing, WeightsError
from flax_resnet.models import ResNet
from flax_resnet.models.variables import (
  image_channels,
  mismatch,
  stack,
  unstack,
  variable_shapes,
  Variables,
  with_new_head,
)
from flax_resnet.weights import files, wrappers
from flax_resnet.weights.names import Convention, CONVENTIONS, Path, recognize

# Axes by which a kernel is transposed from HWIO to OIHW, from WIO to OIW, or
# from [in, out] to [out, in], and back; by how many axes it has.
_TO_TORCH = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}
_TO_FLAX = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}


def from_torch(
  state_dict: Mapping[str, Any],
  model: ResNet,
  *,
  head_key: jax.Array | None = None,
) -> Variables:
  """Returns the variables of `model` from a PyTorch state_dict.

  Names of torchvision, timm, Hugging Face transformers and akamaster's CIFAR
  nets are known, also behind those that training code adds, see `wrappers`. The
  file's head is left out if the model has none (`num_classes=0`).

  Args:
    state_dict: tensors of PyTorch or arrays of NumPy, by name.
    model: the network that they are the weights of.
    head_key: key that a new head is drawn from, in place of the file's, for
      another number of classes; None to keep the file's.

  Returns:
    {"params": ..., "batch_stats": ...} for `model.apply`.

  Raises:
    WeightsError: if the tensors are not those of `model`; it names those that
      are missing, unexpected or of another shape, or hold numbers that no
      training leaves.
  """
  if head_key is None:
    return fit(state_dict, model)
  return with_new_head(fit(state_dict, model, any_head=True), model, head_key)


def fit(
  tensors: Mapping[str, Any], model: ResNet, *, any_head: bool = False
) -> Variables:
  """Returns the arrays of a file as the variables of `model`.

  Args:
    tensors: arrays by name, as `files.read` returns them.
    model: the network; if it has no head, the file's is left out.
    any_head: whether a head for another number of classes, or none, fits the
      model as well.

  Raises:
    WeightsError: as in `from_torch`.
  """
  tensors, stripped = wrappers.unwrap(tensors)
  if stripped:
    files.say(f"the weights, {'; '.join(stripped)}")
  tensors = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.endswith("num_batches_tracked")
  }
  convention = recognize(tensors)
  if any_head and model.num_classes:
    model = model.clone(num_classes=_num_classes(tensors, convention, model))
  if not model.num_classes:
    for array in ("kernel", "bias"):
      tensors.pop(convention.name(("params", "head", array)), None)
  channels = _image_channels(tensors, convention)
  shapes = variable_shapes(model.clone(scan=False), channels)
  leaves: dict[Path, Any] = traverse_util.flatten_dict(shapes)
  names = _names(leaves, convention, model)
  problem = mismatch(
    shapes_in_file(shapes, model, convention),
    {name: list(tensor.shape) for name, tensor in tensors.items()},
  )
  if problem:
    raise WeightsError(
      f"the weights, read with the names of {convention.title}, are not those "
      f"of the model: {problem}{wrappers.likeness(tensors)}"
    )
  arrays = {}
  for path, name in names.items():
    # The average of a run is more precise than its parameters, and stays so.
    dtype = None if convention.flax else leaves[path].dtype
    array = _in_flax(path, tensors[name], convention)
    arrays[path] = jnp.asarray(array, dtype)
  wrong = [names[path] for path, x in arrays.items() if not _can_be(path, x)]
  # A run of this package that has diverged is looked at as it is.
  if wrong and not convention.flax:
    raise WeightsError(
      "the weights hold numbers that are not finite, or negative variances, in "
      f"{listing(wrong)}: the run that wrote them has failed, or the file is "
      "damaged"
    )
  variables = traverse_util.unflatten_dict(arrays)
  return stack(variables) if model.scan else variables


def shapes_in_file(
  shapes: Variables, model: ResNet, convention: Convention
) -> dict[str, list[int]]:
  """Returns the shapes of the tensors of a file by name.

  Args:
    shapes: variables of `model`, of single blocks, or their shapes.
    model: the network.
    convention: names of the file.
  """
  leaves: dict[Path, Any] = traverse_util.flatten_dict(shapes)
  return {
    name: _shape_in_file(path, leaves[path].shape, convention)
    for path, name in _names(leaves, convention, model).items()
  }


def to_torch(
  variables: Mapping[str, Any], model: ResNet, names: str | None = None
) -> dict[str, np.ndarray]:
  """Returns a state_dict of NumPy arrays, which PyTorch loads strictly.

  Args:
    variables: variables of `model`.
    model: the network.
    names: key of `CONVENTIONS`, the owner of the names; None for torchvision's
      (which are timm's too), or in pre-activation nets timm's.

  Returns:
    Arrays by name; BatchNorm's `num_batches_tracked`, which Flax does not
    count, are 0.

  Raises:
    WeightsError: if there are no parameters in `variables`.
  """
  if "params" not in variables:
    raise WeightsError(
      f"the variables have {listing(variables) or 'nothing'} and no params: "
      'give {"params": ..., "batch_stats": ...}'
    )
  usual = "timm_v2" if model.pre_activation else "torchvision"
  convention = CONVENTIONS[names or usual]
  trees = {key: variables.get(key, {}) for key in ("params", "batch_stats")}
  leaves = traverse_util.flatten_dict(unstack(trees))
  state_dict = {}
  for path, name in _names(leaves, convention, model).items():
    array = np.asarray(leaves[path])
    shape = _shape_in_file(path, array.shape, convention)
    if path[-1] == "kernel":
      array = array.transpose(_TO_TORCH[array.ndim])
    state_dict[name] = np.asarray(array, order="C").reshape(shape)
    if path[-1] == "var":
      counter = name.replace("running_var", "num_batches_tracked")
      state_dict[counter] = np.zeros((), np.int64)
  return state_dict


def _can_be(path: Path, array: jax.Array) -> bool:
  """Whether training can leave these numbers in an array."""
  values = np.asarray(array)  # On CPU a view.
  if path[-1] == "var" and not (values >= 0).all():
    return False
  return bool(np.isfinite(values).all())


def _names(
  paths: Iterable[Path], convention: Convention, model: ResNet
) -> dict[Path, str]:
  """Returns the names of arrays in a file, by their paths in the network."""
  pooled = model.shortcut == "pooled"
  return {path: convention.name(path, pooled=pooled) for path in paths}


def _num_classes(
  tensors: Mapping[str, Any], convention: Convention, model: ResNet
) -> int:
  """Returns the width of the head in a file; 0 if it has none."""
  kernel = tensors.get(convention.name(("params", "head", "kernel")))
  if kernel is None:
    return 0
  if len(kernel.shape) not in (2, 4):  # No head at all: let it be reported.
    return model.num_classes
  return kernel.shape[-1 if convention.flax else 0]


def _image_channels(tensors: Mapping[str, Any], convention: Convention) -> int:
  """Returns the number of channels that the stem in a file takes."""
  stem = {}
  for layer in ("conv", "conv1"):  # Of a plain and of a deep stem.
    path = ("params", "stem", layer, "kernel")
    kernel = tensors.get(convention.name(path))
    if kernel is not None and len(kernel.shape) == 4:
      stem[layer] = {"kernel": _in_flax(path, kernel, convention)}
  return image_channels({"stem": stem})


def _shape_in_file(
  path: Path, shape: Sequence[int], convention: Convention
) -> list[int]:
  """Returns the shape in a file of an array that has `shape` in Flax."""
  if path[-1] != "kernel" or convention.flax:
    return list(shape)
  in_torch = [shape[axis] for axis in _TO_TORCH[len(shape)]]
  is_convolution = path[1] == "head" and convention.conv_head
  return [*in_torch, 1, 1] if is_convolution else in_torch


def _in_flax(path: Path, tensor: Any, convention: Convention) -> np.ndarray:
  """Returns a tensor of a file as an array in Flax's layout."""
  if hasattr(tensor, "detach"):  # PyTorch's.
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds all of its values.
    tensor = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    tensor = tensor.numpy()
  array = np.asarray(tensor)
  if path[-1] != "kernel" or convention.flax:
    return array
  if path[1] == "head":  # In some networks a 1x1 convolution.
    array = array.reshape(array.shape[:2])
  return array.transpose(_TO_FLAX[array.ndim])
