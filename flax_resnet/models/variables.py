"""The variables of a network: drawn, stacked, folded, compared."""

from collections.abc import Callable, Mapping
import functools
import math
import re
from typing import Any

from flax import traverse_util
import jax
from jax.core import Tracer
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp

from flax_resnet.errors import listing
from flax_resnet.models.norms import BatchNorm
from flax_resnet.models.resnet import ResNet

# {"params": …, "batch_stats": …}, as `model.apply` takes them.
Variables = dict[str, Any]


def initial_variables(
  model: ResNet, key: jax.Array, image_shape: tuple[int, int, int]
) -> Variables:
  """Returns what `model.init` does, to the bit, without running the network.

  The network is traced, and only the part of the trace that draws the variables
  is run: nothing is compiled but the initializers, whatever the depth. On two
  CPU cores that takes 3.2 s for ResNet-110 and 4.6 s for ResNet-1202 with
  `scan`, 16 s without; `jax.jit(model.init)`, compiled as quickly, 10 s, 3.5 s
  and over 400 s, and it draws other bits, as XLA fuses what it draws with;
  `lazy_init` 8.7 s, 14 s and 41 s (one run each on a busy machine).

  Args:
    model: the network.
    key: key that the variables are drawn from.
    image_shape: shape of an image, [h, w, c].
  """

  def init(key):
    images = jnp.zeros((1, *image_shape), model.dtype)
    return model.init(key, images, train=False)

  traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
  drawing, _ = partial_eval.dce_jaxpr(
    traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True
  )
  drawn = _evaluate(drawing, traced.consts, key)
  return jax.tree.unflatten(jax.tree.structure(shapes), drawn)


def _evaluate(jaxpr: core.Jaxpr, consts: list[Any], key: jax.Array) -> list:
  """Does as `jax.core.eval_jaxpr`; compiles each equation quickly."""
  inputs = [*jaxpr.constvars, *jaxpr.invars]
  values = dict(zip(inputs, [*consts, key], strict=True))

  def value(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  # Under a caller's `jit`, they are compiled with the caller's program.
  traced = isinstance(jnp.zeros(()), Tracer)
  compiled = _bound if traced or jax.default_backend() != "cpu" else _compiled
  for equation in jaxpr.eqns:
    run = compiled(equation.primitive, tuple(equation.params.items()))
    results = run(*map(value, equation.invars))
    many = equation.primitive.multiple_results
    values.update(
      zip(equation.outvars, results if many else [results], strict=True)
    )
  return list(map(value, jaxpr.outvars))


def _bound(primitive: core.Primitive, params: tuple) -> Callable:
  return functools.partial(primitive.bind, **dict(params))


@functools.cache
def _compiled(primitive: core.Primitive, params: tuple) -> Callable:
  # LLVM takes a third of a second to optimize each shape that is drawn once. Of
  # the lower levels, 0 rounds otherwise, and 1 gives the same bits.
  options = {"xla_backend_optimization_level": 1}
  return jax.jit(_bound(primitive, params), compiler_options=options)


def with_new_head(
  variables: Mapping[str, Any], model: ResNet, key: jax.Array
) -> Variables:
  """Returns variables with a head drawn for `model`, if it has one.

  Args:
    variables: variables of the same network with any head, or none.
    model: the network.
    key: key that the head is drawn from.
  """
  params = {k: v for k, v in variables["params"].items() if k != "head"}
  if model.num_classes:
    shape = (32, 32, image_channels(params))
    params["head"] = initial_variables(model, key, shape)["params"]["head"]
  return {**variables, "params": params}


def image_channels(params: Mapping[str, Any]) -> int:
  """Returns the number of channels of the images that a stem takes."""
  stem = params.get("stem", {})
  kernel = (stem.get("conv") or stem.get("conv1") or {}).get("kernel")
  return 3 if kernel is None else kernel.shape[2]


def count_parameters(params: Any) -> int:
  """Returns the number of elements of all arrays of a tree together."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def variable_shapes(model: ResNet, channels: int = 3) -> Variables:
  """Returns the variables of a network as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, 32, 32, channels), model.dtype)
  return jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name: "params/stem/conv/kernel"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Returns how the arrays of a file differ from those of a network.

  Args:
    expected: shapes by name, or anything else that is compared and printed.
    found: the same of the file.

  Returns:
    "missing: a, b; unexpected: c; different: d [3] instead of [4]", or "".
  """
  groups = {
    "missing": [name for name in expected if name not in found],
    "unexpected": [name for name in found if name not in expected],
    "different": [
      f"{name} {found[name]} instead of {expected[name]}"
      for name in expected
      if name in found and found[name] != expected[name]
    ],
  }
  return "; ".join(
    f"{group}: {listing(names, 8)}" for group, names in groups.items() if names
  )


def stack(variables: Mapping[str, Any]) -> Variables:
  """Returns variables for `scan=True`, from those of single blocks.

  The loop over the blocks 2 to n of a stage keeps their variables in one tree,
  `stage1_blocks`, stacked along a new first axis; without the loop they are
  `stage1_block2` to `stage1_block<n>`.
  """
  return {collection: _stack(tree) for collection, tree in variables.items()}


def unstack(variables: Mapping[str, Any]) -> Variables:
  """Returns variables of single blocks, from those of `scan=True`."""
  return {collection: _unstack(tree) for collection, tree in variables.items()}


def _stack(tree: Mapping[str, Any]) -> Variables:
  stages: dict[str, dict[int, Any]] = {}
  stacked = {}
  for name, value in tree.items():
    match = re.fullmatch(r"(stage\d+)_block(\d+)", name)
    if match and match[2] != "1":
      stages.setdefault(match[1], {})[int(match[2])] = value
    else:
      stacked[name] = value
  for stage, blocks in stages.items():
    in_order = [blocks[number] for number in sorted(blocks)]
    stacked[f"{stage}_blocks"] = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *in_order
    )
  return stacked


def _unstack(tree: Mapping[str, Any]) -> Variables:
  single = {}
  for name, value in tree.items():
    match = re.fullmatch(r"(stage\d+)_blocks", name)
    if not match:
      single[name] = value
      continue
    for number in range(len(jax.tree.leaves(value)[0])):
      single[f"{match[1]}_block{number + 2}"] = jax.tree.map(
        lambda leaf, number=number: leaf[number], value
      )
  return single


def fold_batch_norm(
  model: ResNet, variables: Mapping[str, Any]
) -> tuple[ResNet, Variables]:
  """Returns a network without BatchNorm that evaluates to the same outputs.

  With running statistics, BatchNorm scales and shifts every channel by numbers
  that no longer change; the convolution before it can do that: its kernel is
  scaled, and it gets a bias.

  Args:
    model: a network whose BatchNorms come after convolutions: any but the
      pre-activation ones.
    variables: {"params": ..., "batch_stats": ...} of `model`.

  Returns:
    The network with `norm="none"`, and its variables, {"params": ...}.

  Raises:
    ValueError: for a pre-activation network, one without BatchNorm, or one of
      standardized kernels.
  """
  if model.pre_activation:
    raise ValueError(
      "BatchNorm of a pre-activation network comes before the convolutions, "
      "with a ReLU between: it cannot be folded into them"
    )
  if model.norm != "batch":
    raise ValueError("the network has no BatchNorm to fold")
  if model.weight_standardization:
    raise ValueError(
      "BatchNorm behind standardized kernels cannot be folded into them: they "
      "would be standardized again"
    )
  params: dict[Any, Any] = traverse_util.flatten_dict(variables["params"])
  stats: dict[Any, Any] = traverse_util.flatten_dict(variables["batch_stats"])
  for *block, norm in {path[:-1] for path in stats}:
    bn, conv = (*block, norm), (*block, norm.replace("bn", "conv"))
    inverse = jax.lax.rsqrt(stats[*bn, "var"] + BatchNorm.epsilon)
    factor = params.pop((*bn, "scale")) * inverse
    # [h, w, i, f] times [f]; in scanned blocks [n, h, w, i, f] times [n, f].
    by_channel = factor[..., None, None, None, :]
    params[*conv, "kernel"] = params[*conv, "kernel"] * by_channel
    bias = params.get((*conv, "bias"), 0.0) - stats[*bn, "mean"]
    params[*conv, "bias"] = params.pop((*bn, "bias")) + bias * factor
  folded = model.clone(norm="none", zero_init_residual=False)
  return folded, {"params": traverse_util.unflatten_dict(params)}
