"""Between PyTorch's state_dict and Flax's variables."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.models import ResNet
from flax_resnet.models.stacking import stack, unstack
from flax_resnet.models.start import initial_variables
from flax_resnet.weights.names import (
  ARRAYS,
  Convention,
  CONVENTIONS,
  recognise,
  usual,
)

Variables = dict[str, Any]
StateDict = dict[str, np.ndarray]


class WeightsError(ValueError):
  """Weights that cannot be read, or do not fit the network."""


def from_torch(
  state_dict: Mapping[str, Any],
  model: ResNet,
  *,
  head_key: jax.Array | None = None,
) -> Variables:
  """Returns the variables of `model` from a PyTorch state_dict.

  Names of torchvision, timm, Hugging Face transformers and akamaster's CIFAR
  nets are known, with or without "module." before them. A file's head is left
  out if the model has none (`num_classes=0`).

  Args:
    state_dict: Tensors of PyTorch or arrays of NumPy, by name.
    model: The network that they are the weights of.
    head_key: Initialises the head, in place of the file's; for another number
      of classes.

  Returns:
    {"params": ..., "batch_stats": ...} for `model.apply`.

  Raises:
    WeightsError: When the tensors are not those of `model`; it names those
      that are missing, unexpected or of another shape.
  """
  tensors = {
    name.removeprefix("module."): value
    for name, value in state_dict.items()
    if not name.endswith("num_batches_tracked")
  }
  convention = recognise(tensors)
  wanted = _leaves(model, head_key, _channels(tensors, model, convention))
  names = {path: _name(path, model, convention) for path in wanted}
  if not model.num_classes or head_key is not None:
    for array in ("weight", "bias"):
      tensors.pop(f"{convention.head}.{array}", None)
  arrays = {
    path: _from_layout(path, tensors[name])
    for path, name in names.items()
    if name in tensors
  }
  _check(names, wanted, arrays, tensors, convention, head_key is not None)
  variables = traverse_util.unflatten_dict(
    {
      path: jnp.asarray(arrays[path], leaf.dtype) if path in arrays else leaf
      for path, leaf in wanted.items()
    }
  )
  return stack(variables) if model.scan else variables


def to_torch(
  variables: Mapping[str, Any], model: ResNet, names: str | None = None
) -> StateDict:
  """Returns a state_dict of NumPy arrays, which PyTorch loads strictly.

  Args:
    variables: Of `model`.
    model: The network.
    names: Whose names: one of `CONVENTIONS`; None for torchvision's (which are
      timm's too), or in pre-activation nets timm's.

  Returns:
    Arrays by name; BatchNorm's `num_batches_tracked`, which Flax does not
    count, are 0.
  """
  convention = usual(model) if names is None else CONVENTIONS[names]
  flat = traverse_util.flatten_dict(
    {
      key: tree
      for key, tree in unstack(variables).items()
      if key in ("params", "batch_stats")
    }
  )
  state_dict = {}
  for path, leaf in flat.items():
    name = _name(path, model, convention)
    array = np.asarray(leaf)
    if path[-1] == "kernel":
      array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
      if path[1] == "head" and convention.head_is_convolution:
        array = array[:, :, None, None]
    state_dict[name] = np.ascontiguousarray(array)
    if path[-1] == "var":
      counter = name.replace("running_var", "num_batches_tracked")
      state_dict[counter] = np.zeros((), np.int64)
  return state_dict


def _channels(
  tensors: Mapping[str, Any], model: ResNet, convention: Convention
) -> int:
  """Returns how many channels the images have that the stem takes."""
  first = "conv1" if model.stem.startswith("deep") else "conv"
  path = ("params", "stem", first, "kernel")
  kernel = tensors.get(_name(path, model, convention))
  return kernel.shape[1] if kernel is not None and kernel.ndim == 4 else 3


def _leaves(
  model: ResNet, head_key: jax.Array | None, channels: int
) -> dict[tuple, Any]:
  """Returns shapes by path, or drawn numbers if the head is to be."""
  images = jax.ShapeDtypeStruct((1, 32, 32, channels), model.dtype)
  plain = model.clone(scan=False)

  def init(key):
    return plain.lazy_init(key, images, train=False)

  if head_key is None:
    return traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)))
  return traverse_util.flatten_dict(
    initial_variables(plain, head_key, (32, 32, channels))
  )


def _name(path: tuple, model: ResNet, convention: Convention) -> str:
  _, *layer, array = path
  return f"{convention.name(tuple(layer), model)}.{ARRAYS[array]}"


def _from_layout(path: tuple, tensor: Any) -> np.ndarray:
  """Returns an array in Flax's layout: OIHW to HWIO, [out, in] to [in, out]."""
  if hasattr(tensor, "detach"):
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds all of its values.
    tensor = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    tensor = tensor.numpy()
  array = np.asarray(tensor)
  if path[-1] == "kernel":
    if path[1] == "head":
      array = array.reshape(array.shape[:2])
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    array = array.transpose(axes) if axes else array
  return array


def _check(
  names: Mapping[tuple, str],
  wanted: Mapping[tuple, Any],
  arrays: Mapping[tuple, np.ndarray],
  tensors: Mapping[str, Any],
  convention: Convention,
  fresh_head: bool,
) -> None:
  missing = [
    name
    for path, name in names.items()
    if path not in arrays and not (fresh_head and path[1] == "head")
  ]
  unexpected = sorted(tensors.keys() - set(names.values()))
  misshaped = [
    f"{names[path]} {list(tensors[names[path]].shape)} for "
    f"{'/'.join(path[1:])} {list(wanted[path].shape)}"
    for path, array in arrays.items()
    if array.shape != wanted[path].shape
  ]
  problems = [
    f"{kind}: {', '.join(found[:8])}"
    + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    for kind, found in (
      ("missing", missing),
      ("unexpected", unexpected),
      ("of another shape", misshaped),
    )
    if found
  ]
  if problems:
    raise WeightsError(
      f"the weights, read with the names of {convention.title}, are not those "
      f"of the model: {'; '.join(problems)}"
    )
