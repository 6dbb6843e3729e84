"""A traced inference program as an ONNX model.

The equations of the jaxpr become nodes one by one; those between numbers that
are known already, such as the scale of a BatchNorm over its deviation, become
initializers. ONNX convolves [b, c, h, w]. A tensor remembers which of its axes
each axis of the JAX value is, so that a network needs one transpose in front of
its first convolution, or none, instead of two around each.

jax2onnx, the converter there is, puts its own functions into Flax while it
traces. It drops the padding of pools (findings/jax2onnx_pool_padding.sh), has
no rule for `platform_dependent`, and the versions that install beside
orbax-checkpoint 0.12 end at 0.13.0.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import math
from typing import Any

from etils import epy
import jax
from jax import export
from jax.extend import core
import numpy as np

with epy.lazy_imports():  # An extra.
  import onnx
  from onnx import helper, numpy_helper

OPSET = 17  # Of 2022: what reads ONNX today reads it.
IR_VERSION = 8


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A value that is computed in the graph.

  Attributes:
    name: name of the ONNX tensor.
    axes: axis of the tensor that each axis of the JAX value is; None for an
      axis of size 1 that the tensor does not have.
    repeated: whether the JAX value repeats the tensor along an axis of size 1.
  """

  name: str
  axes: tuple[int | None, ...]
  repeated: bool = False

  @property
  def order(self) -> list[int]:
    """The axes of the JAX value that the tensor has, in its own order."""
    present = [
      (axis, i) for i, axis in enumerate(self.axes) if axis is not None
    ]
    return [i for _, i in sorted(present)]


# What is known while exporting is an array, in the axes of the JAX value.
_Value = _Tensor | np.ndarray


def to_onnx(
  function: Callable[[Any], jax.Array], images: jax.ShapeDtypeStruct
) -> Any:
  """Returns a function as a checked `onnx.ModelProto`.

  Args:
    function: function from images to logits.
    images: shape, which may have symbols, and dtype of the images.

  Returns:
    A model from "images" to "logits".

  Raises:
    ValueError: for an operation that no residual network has in evaluation.
  """
  traced = jax.make_jaxpr(function)(images)
  graph = _Graph()
  axes = tuple(range(len(images.shape)))
  (found,) = graph.run(traced, [_Tensor("images", axes)])
  (logits,) = traced.out_avals
  graph.add("Identity", graph.ordered(found, range(logits.ndim)), out="logits")
  model = helper.make_model(
    helper.make_graph(
      graph.nodes,
      "flax_resnet",
      [_declared("images", images)],
      [_declared("logits", logits)],
      graph.initializers,
    ),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="flax_resnet",
  )
  onnx.checker.check_model(model, full_check=True)
  return model


def _declared(name: str, aval: Any) -> Any:
  shape = [str(n) if export.is_symbolic_dim(n) else int(n) for n in aval.shape]
  return helper.make_tensor_value_info(name, _element_type(aval.dtype), shape)


def _element_type(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
  """The nodes and the initializers of a model while it is written."""

  def __init__(self):
    self.nodes: list[Any] = []
    self.initializers: list[Any] = []
    self._scope: list[str] = []
    self._names: set[str] = set()

  def run(self, program: Any, inputs: Sequence[_Value]) -> list[_Value]:
    """Adds the nodes of a closed jaxpr; returns its outputs."""
    jaxpr = program.jaxpr
    variables = [*jaxpr.constvars, *jaxpr.invars]
    consts = map(np.asarray, program.consts)
    values = dict(zip(variables, [*consts, *inputs], strict=True))

    def value(atom: Any) -> _Value:
      if isinstance(atom, core.Literal):
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)  # Of a Python number, perhaps.
      return values[atom]

    for equation in jaxpr.eqns:
      self._scope.append(str(equation.source_info.name_stack))
      results = self._equation(equation, list(map(value, equation.invars)))
      self._scope.pop()
      values.update(zip(equation.outvars, results, strict=True))
    return list(map(value, jaxpr.outvars))

  def _equation(self, equation: Any, operands: list[Any]) -> list[_Value]:
    name, params = equation.primitive.name, equation.params
    for key in ("jaxpr", "call_jaxpr"):  # A call of another function.
      if key in params:
        return self.run(params[key], operands)
    if name == "platform_index":
      # The last branch of `platform_dependent`, its default, is of plain
      # operations, without the formulations that one platform is fast at.
      return [np.asarray(len(params["platforms"]) - 1)]
    if name == "cond" and isinstance(operands[0], np.ndarray):
      return self.run(params["branches"][int(operands[0])], operands[1:])
    shapes = [atom.aval.shape for atom in equation.invars]
    shape = equation.outvars[0].aval.shape
    if name in ("broadcast_in_dim", "reshape", "squeeze"):
      dims = params.get("broadcast_dimensions")
      places = _kept_axes(shapes[0], shape) if dims is None else dims
      return [_renamed(operands[0], shapes[0], shape, places)]
    if all(isinstance(operand, np.ndarray) for operand in operands):
      whole = map(_broadcast, operands, shapes)
      return [np.asarray(equation.primitive.bind(*whole, **params))]
    if name in _ELEMENTWISE:
      return [_elementwise(self, _ELEMENTWISE[name], operands)]
    if name not in _RULES:
      raise ValueError(f"there is no rule for {name} in ONNX")
    if any(isinstance(x, _Tensor) and x.repeated for x in operands):
      raise ValueError(f"there is no rule for {name} of a repeated tensor")
    for key in _ONES:
      if set(np.ravel(params.get(key, 1))) != {1}:
        raise ValueError(f"there is no rule for {name} with a {key} in ONNX")
    return [_RULES[name](self, *operands, **params)]

  def add(
    self, op: str, *inputs: str | np.ndarray, out: str = "", **attributes: Any
  ) -> str:
    """Adds a node; returns the name of its output.

    Args:
      op: operator of ONNX.
      *inputs: tensors by name, and arrays, which become initializers.
      out: name of the output; by default the layer and the operator.
      **attributes: attributes of the operator.
    """
    # Methods are scopes of Flax too: ResNet, ResNet.features.
    layers = "/".join(self._scope).split("/")
    layers = [x for x in layers if x and not x.startswith("ResNet")]
    name = out or self._unused("/".join([*layers, op]))
    tensors = []
    for tensor in inputs:
      if isinstance(tensor, np.ndarray):
        data, tensor = tensor, self._unused(f"{name}/constant")
        self.initializers.append(numpy_helper.from_array(data, tensor))
      tensors.append(tensor)
    self.nodes.append(
      helper.make_node(op, tensors, [name], name=name, **attributes)
    )
    return name

  def _unused(self, name: str) -> str:
    candidate, number = name, 1
    while candidate in self._names:
      number += 1
      candidate = f"{name}_{number}"
    self._names.add(candidate)
    return candidate

  def ordered(self, value: _Value, order: Iterable[int]) -> Any:
    """Returns a tensor, or an array, with axes of a JAX value in an order.

    Args:
      value: value, whose axes that are left out have size 1.
      order: axes of the value.
    """
    order = list(order)
    if isinstance(value, np.ndarray):
      others = tuple(i for i in range(value.ndim) if i not in order)
      kept = np.transpose(value, (*others, *order))
      return np.squeeze(kept, tuple(range(len(others))))
    name = value.name
    axes = [value.axes[i] for i in order]
    present = [axis for axis in axes if axis is not None]
    if len(present) != len(value.order):
      raise ValueError(f"there is no rule for {name} without one of its axes")
    if present != sorted(present):
      name = self.add("Transpose", name, perm=present)
    missing = [i for i, axis in enumerate(axes) if axis is None]
    if missing:
      name = self.add("Unsqueeze", name, np.array(missing))
    return name


def _in_order(
  name: str, order: Sequence[int], rank: int, repeated: bool = False
) -> _Tensor:
  """Returns a tensor that has the axes `order` of a JAX value of `rank`."""
  axes = [order.index(i) if i in order else None for i in range(rank)]
  return _Tensor(name, tuple(axes), repeated)


def _kept_axes(before: Sequence[Any], after: Sequence[Any]) -> list[int | None]:
  """Returns where each axis goes in a reshape by axes of size 1."""
  places, place = [], 0
  for size in before:
    rest = after[place:]
    if size == 1 and (not rest or rest[0] != 1):
      places.append(None)
      continue
    while place < len(after) and after[place] == 1 != size:
      place += 1
    if place == len(after) or after[place] != size:
      raise ValueError(f"there is no rule for a reshape of {before} to {after}")
    places.append(place)
    place += 1
  return places


def _renamed(
  value: _Value,
  before: Sequence[Any],
  after: Sequence[Any],
  places: Sequence[int | None],
) -> _Value:
  """Returns a value with axes of size 1 more or fewer, without a node.

  Args:
    value: the value.
    before: shape of the value.
    after: shape of the result; sizes that were 1 are repeated.
    places: axis of the result for each axis of the value, None for no axis.
  """
  if isinstance(value, np.ndarray):
    shape = [1] * len(after)
    for size, place in zip(value.shape, places, strict=True):
      if place is not None:
        shape[place] = size
    return value.reshape(shape)
  axes: list[int | None] = [None] * len(after)
  sizes: list[Any] = [1] * len(after)
  for axis, size, place in zip(value.axes, before, places, strict=True):
    if place is not None:
      axes[place], sizes[place] = axis, size
    elif axis is not None:
      raise ValueError(f"there is no rule for {value.name} without an axis")
  repeated = value.repeated or sizes != list(after)
  return _Tensor(value.name, tuple(axes), repeated)


def _broadcast(array: np.ndarray, shape: Sequence[Any]) -> np.ndarray:
  """Returns an array of a shape, in which symbols stand for 1."""
  sizes = [1 if export.is_symbolic_dim(size) else size for size in shape]
  return np.broadcast_to(array, sizes)


def _elementwise(graph: _Graph, op: str, operands: list[Any]) -> _Tensor:
  tensors = [x for x in operands if isinstance(x, _Tensor)]
  lead = max(tensors, key=lambda tensor: len(tensor.order))
  inputs = [
    x
    if isinstance(x, np.ndarray) and not x.ndim
    # ONNX repeats axes of size 1 itself.
    else graph.ordered(x, lead.order)
    for x in operands
  ]
  known = [x for x in operands if isinstance(x, np.ndarray)]
  if op == "Max" and known and not known[0].any():
    op, inputs = "Relu", [x for x in inputs if isinstance(x, str)]
  name = graph.add(op, *inputs)
  repeated = all(tensor.repeated for tensor in tensors)
  return _in_order(name, lead.order, len(lead.axes), repeated=repeated)


def _conv(
  graph: _Graph, x: _Tensor, kernel: np.ndarray, **params: Any
) -> _Tensor:
  dimensions = params["dimension_numbers"]
  name = graph.add(
    "Conv",
    graph.ordered(x, dimensions.lhs_spec),
    graph.ordered(kernel, dimensions.rhs_spec),
    strides=params["window_strides"],
    pads=_pads(params["padding"]),
    dilations=params["rhs_dilation"],
    group=params["feature_group_count"],
  )
  return _in_order(name, dimensions.out_spec, len(x.axes))


def _pads(padding: Any) -> list[int]:
  """Returns pairs of paddings as ONNX has them: all before, all behind."""
  return np.transpose(padding).flatten().tolist()


def _dot(
  graph: _Graph, x: _Tensor, matrix: np.ndarray, *, dimension_numbers: Any, **_
) -> _Tensor:
  ((x_axis,), (matrix_axis,)), ((), ()) = dimension_numbers
  others = [i for i in range(len(x.axes)) if i != x_axis]
  name = graph.add(
    "MatMul",
    graph.ordered(x, [*others, x_axis]),
    matrix if matrix_axis == 0 else matrix.T,
  )
  return _in_order(name, range(len(x.axes)), len(x.axes))


def _reduce_sum(
  graph: _Graph, x: _Tensor, *, axes: Sequence[int], **_
) -> _Tensor:
  summed = np.array([x.axes[i] for i in axes if x.axes[i] is not None])
  name = graph.add("ReduceSum", x.name, summed, keepdims=0)
  left = [i for i in range(len(x.axes)) if i not in axes]
  order = [left.index(i) for i in x.order if i in left]
  return _in_order(name, order, len(left))


def _pool(op: str, graph: _Graph, x: _Tensor, **params: Any) -> _Tensor:
  order = (0, 3, 1, 2)  # The windows are of pixels of [b, h, w, c].
  window = params["window_dimensions"]
  attributes: dict[str, Any] = {
    "kernel_shape": window[1:3],
    "strides": params["window_strides"][1:3],
    "pads": _pads(params["padding"][1:3]),
  }
  if op == "AveragePool":
    attributes["count_include_pad"] = 1
  name = graph.add(op, graph.ordered(x, order), **attributes)
  if op == "AveragePool":
    name = graph.add("Mul", name, np.asarray(math.prod(window), np.float32))
  return _in_order(name, order, 4)


def _slice(graph: _Graph, x: _Tensor, **params: Any) -> _Tensor:
  order, strides = x.order, params["strides"]
  limits = [params["limit_indices"][i] for i in order]
  whole = np.iinfo(np.int64).max
  bounds = (
    [params["start_indices"][i] for i in order],
    [whole if export.is_symbolic_dim(limit) else limit for limit in limits],
    range(len(order)),
    [strides[i] if strides else 1 for i in order],
  )
  name = graph.add("Slice", x.name, *map(np.array, bounds))
  return dataclasses.replace(x, name=name)


def _pad(
  graph: _Graph, x: _Tensor, value: np.ndarray, *, padding_config: Any
) -> _Tensor:
  if any(interior for *_, interior in padding_config):
    raise ValueError("there is no rule for pad between elements in ONNX")
  pads = _pads([padding_config[i][:2] for i in x.order])
  name = graph.add("Pad", x.name, np.array(pads), value)
  return dataclasses.replace(x, name=name)


def _concatenate(
  graph: _Graph, first: _Tensor, *others: _Value, dimension: int
) -> _Tensor:
  tensors = [graph.ordered(x, first.order) for x in (first, *others)]
  axis = first.order.index(dimension)
  return dataclasses.replace(
    first, name=graph.add("Concat", *tensors, axis=axis)
  )


def _transpose(_: _Graph, x: _Tensor, *, permutation: Sequence[int]) -> _Tensor:
  axes = tuple(x.axes[i] for i in permutation)
  return dataclasses.replace(x, axes=axes)


def _convert(graph: _Graph, x: _Tensor, *, new_dtype: Any, **_) -> _Tensor:
  name = graph.add("Cast", x.name, to=_element_type(new_dtype))
  return dataclasses.replace(x, name=name)


# What nets of the zoo do in evaluation, in float32, to what depends on images.
_ELEMENTWISE = {
  "add": "Add",
  "sub": "Sub",
  "mul": "Mul",
  "div": "Div",
  "max": "Max",
  "logistic": "Sigmoid",
}
# Parameters of theirs that are always 1 there.
_ONES = (
  "batch_group_count",
  "lhs_dilation",
  "base_dilation",
  "window_dilation",
)
_RULES: dict[str, Callable[..., _Tensor]] = {
  "concatenate": _concatenate,
  "conv_general_dilated": _conv,
  "convert_element_type": _convert,
  "dot_general": _dot,
  "pad": _pad,
  "reduce_sum": _reduce_sum,
  "reduce_window_max": functools.partial(_pool, "MaxPool"),
  "reduce_window_sum": functools.partial(_pool, "AveragePool"),
  "slice": _slice,
  "transpose": _transpose,
}
