"""What goes through the blocks of a network, forwards and backwards.

Everything is measured from outside, by intercepting the calls of submodules:
the blocks know nothing of it.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from flax_resnet.models import ResNet
from flax_resnet.models.branch import StochasticDepth
from flax_resnet.models.layers import BatchNorm
from flax_resnet.models.plan import plan_stages
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.stacking import unstack

_BLOCK = re.compile(r"stage\d+_block\d+")


@dataclasses.dataclass(frozen=True)
class BlockProbe:
  """What was measured at one block, H(x) = F(x) + x, on a batch.

  Attributes:
    name: "stage1_block1".
    gradient: Norm of the gradient of the loss at the block's output.
    gradient_by_skips: The same, if the gradient went back through the skips
      alone, and through no F; None in a plain net.
    residual: Norm of F(x) over that of x as the shortcut hands it on; None in a
      plain net.
    cosine: Between the block's output and that x; None in a plain net.
    open: Share of the units of the last ReLU that let the gradient pass; 1 in a
      pre-activation net, which has none after the sum.
  """

  name: str
  gradient: float
  gradient_by_skips: float | None
  residual: float | None
  cosine: float | None
  open: float


@dataclasses.dataclass(frozen=True)
class Probe:
  """What was measured on a network.

  Attributes:
    images: How many.
    loss: Cross-entropy of the batch.
    stem_gradient: Norm of the gradient of the loss at the stem's output.
    blocks: From the first to the last.
    responses: Standard deviation of the output of each layer, by its name:
      after BatchNorm and before any ReLU or sum, as in Fig. 7 of He et al.
      2015; without BatchNorm, after the convolution.
  """

  images: int
  loss: float
  stem_gradient: float
  blocks: list[BlockProbe]
  responses: dict[str, float]

  @property
  def has_skips(self) -> bool:
    """Whether the blocks add their input to their output."""
    return self.blocks[0].residual is not None


def probe(
  model: ResNet,
  variables: Any,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
) -> Probe:
  """Returns what goes through a network on a batch, in training.

  Args:
    model: The network.
    variables: Of it.
    images: Normalised.
    labels: Of the images.
  """
  return probe_each(model, [variables], images, labels)[0]


def probe_each(
  model: ResNet,
  states: Sequence[Any],
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
) -> list[Probe]:
  """As `probe` for each of several variables of one network; compiled once."""
  if model.scan:
    states = [unstack(variables) for variables in states]
  # What hides the blocks, or drops parts of them.
  model = model.clone(
    scan=False, remat=False, stochastic_depth=0.0, dropout=0.0
  )
  run = functools.partial(_run, model)
  shapes = jax.eval_shape(
    lambda v, x, y: run(v, x, y, {}, cut=False)[1]["outputs"],
    states[0],
    images,
    labels,
  )
  nothing = {
    name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()
  }
  whole, by_skips = (
    jax.jit(
      jax.value_and_grad(functools.partial(run, cut=cut), 3, has_aux=True)
    )
    for cut in (False, True)
  )
  found = []
  for variables in states:
    batch = (variables, images, labels, nothing)
    forward, gradients = cast(Any, whole(*batch))
    skips = None
    if model.shortcut != "none":
      _, skips = cast(Any, by_skips(*batch))
    found.append(_probe(model, forward, gradients, skips))
  return found


def _probe(
  model: ResNet,
  forward: tuple[Array, dict[str, dict[str, Array]]],
  gradients: dict[str, Array],
  by_skips: dict[str, Array] | None,
) -> Probe:
  """Returns what two passes have shown.

  Args:
    model: The network.
    forward: What `_run` returns.
    gradients: At the outputs of the stem and of the blocks.
    by_skips: The same, if no gradient passes through any F.
  """
  loss, seen = forward
  blocks = [
    BlockProbe(
      name=name,
      gradient=_norm(gradients[name]),
      gradient_by_skips=_norm(by_skips[name]) if by_skips else None,
      residual=_maybe(seen["residual"].get(name)),
      cosine=_maybe(seen["cosine"].get(name)),
      open=1.0
      if model.pre_activation
      else float((seen["outputs"][name] > 0).mean()),
    )
    for name in block_names(model)
  ]
  return Probe(
    images=len(seen["outputs"]["stem"]),
    loss=float(loss),
    stem_gradient=_norm(gradients["stem"]),
    blocks=blocks,
    responses=dict(
      sorted(
        ((name, float(std)) for name, std in seen["responses"].items()),
        key=lambda item: _place(item[0], model),
      )
    ),
  )


def block_names(model: ResNet) -> list[str]:
  """Returns the names of the blocks, from the first to the last."""
  return [
    f"stage{stage}_block{number}"
    for stage, plans in enumerate(plan_stages(model), start=1)
    for number in range(1, len(plans) + 1)
  ]


def _run(
  model: ResNet,
  variables: Any,
  images: Array,
  labels: Array,
  added: dict[str, Array],
  *,
  cut: bool,
) -> tuple[Array, dict[str, dict[str, Array]]]:
  """Returns the loss, and what was seen on the way.

  Args:
    model: The network.
    variables: Of it.
    images: Normalised.
    labels: Of the images.
    added: Zeros that are added to the outputs of the blocks and of the stem:
      the gradient at them is that of the output.
    cut: Let no gradient pass through any F.
  """
  seen: dict[str, dict[str, Any]] = {
    "outputs": {},
    "residual": {},
    "cosine": {},
    "responses": {},
  }
  branches: dict[str, tuple[Array, Any]] = {}

  def see(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    result = call(*arguments, **keywords)
    if context.method_name != "__call__" or not context.module.path:
      return result
    top, *rest = path = context.module.path
    if path == ("stem",):
      pooled = seen["outputs"]["stem"] = result[1]
      return result[0], pooled + added.get("stem", 0.0)
    if isinstance(context.module, StochasticDepth):  # What it lets by is F(x).
      branches[top] = (result, None)
      return jax.lax.stop_gradient(result) if cut else result
    if isinstance(context.module, Shortcut):
      branches[top] = (branches[top][0], result)
    elif _is_layer(context.module, model) and "shortcut" not in rest:
      seen["responses"]["/".join(path)] = jnp.std(result)
    elif _BLOCK.fullmatch(top) and not rest:
      residual, skip = branches[top]
      seen["outputs"][top] = result
      if not isinstance(skip, float):
        size = jnp.linalg.norm(skip.ravel())
        seen["residual"][top] = jnp.linalg.norm(residual.ravel()) / size
        seen["cosine"][top] = (result * skip).sum() / (
          size * jnp.linalg.norm(result.ravel())
        )
      return result + added.get(top, 0.0)
    return result

  with nn.intercept_methods(see):
    logits, _ = model.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
  each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return each.mean(), seen


def _place(layer: str, model: ResNet) -> tuple[int, str]:
  """Returns where a layer comes in the network, to sort by."""
  top, _, rest = layer.partition("/")
  order = ["stem", *block_names(model)]
  return (order.index(top) if top in order else len(order), rest)


def _is_layer(module: Any, model: ResNet) -> bool:
  if model.norm == "none":
    return isinstance(module, nn.Conv)
  return isinstance(module, BatchNorm)


def _norm(x: Array) -> float:
  return float(jnp.linalg.norm(x.ravel()))


def _maybe(x: Array | None) -> float | None:
  return None if x is None else float(x)
