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
from flax_resnet.models.layers import StochasticDepth
from flax_resnet.models.norms import NORMS
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.variables import unstack, Variables


@dataclasses.dataclass(frozen=True)
class BlockProbe:
  """What was measured at one block, H(x) = F(x) + x, on a batch.

  Attributes:
    name: "stage1_block1".
    gradient: norm of the gradient of the loss at the block's output.
    gradient_by_skips: norm of that gradient if it went back through the skips
      alone, and through no F; None in a plain net.
    residual: norm of F(x) over that of x after the shortcut; None in a plain
      net.
    cosine: cosine between the block's output and that x, in [-1, 1]; None in a
      plain net.
    open: share of the units of the last ReLU that let the gradient pass, in
      [0, 1]; 1 in a pre-activation net, which has none after the sum.
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
    images: number of images in the batch.
    loss: mean cross-entropy of the batch.
    stem_gradient: norm of the gradient of the loss at the stem's output.
    blocks: measures of the blocks, first to last.
    responses: standard deviation of the output of each layer by its name,
      "stage1_block1/bn1": after BatchNorm and before any ReLU or sum, as in
      Fig. 7 of He et al. 2015; without BatchNorm, after the convolution.
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

  def at_blocks(self, name: str) -> list[float | None]:
    """Returns an attribute of all blocks, first to last."""
    return [getattr(block, name) for block in self.blocks]

  def gradients(self) -> list[float | None]:
    """Returns the norms of the gradient at the stem and at the blocks."""
    return [self.stem_gradient, *self.at_blocks("gradient")]


def probe(
  model: ResNet,
  states: Sequence[Variables],
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
) -> list[Probe]:
  """Returns what goes through a network on a batch, in training.

  Args:
    model: the network; it is compiled once.
    states: variables of the network, one or several; each gives a probe.
    images: normalized images.
    labels: labels of the images.
  """
  if model.scan:
    states = [unstack(variables) for variables in states]
  # A loop or remat hides the blocks; the others drop parts of them.
  model = model.clone(
    scan=False, remat=False, stochastic_depth=0.0, dropout=0.0
  )
  loss = functools.partial(_loss, model)
  shapes = jax.eval_shape(
    lambda v, x, y: loss(v, x, y, {}, skips_only=False)[1]["outputs"],
    states[0],
    images,
    labels,
  )
  zeros = {
    name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()
  }
  whole, by_skips = (
    jax.jit(
      jax.value_and_grad(
        functools.partial(loss, skips_only=skips_only),
        argnums=3,
        has_aux=True,
      )
    )
    for skips_only in (False, True)
  )
  probes = []
  for variables in states:
    inputs = (variables, images, labels, zeros)
    (value, measured), gradients = cast(Any, whole(*inputs))
    skip_gradients = None
    if model.shortcut != "none":
      _, skip_gradients = cast(Any, by_skips(*inputs))
    probes.append(_probe(model, value, measured, gradients, skip_gradients))
  return probes


def _loss(
  model: ResNet,
  variables: Variables,
  images: Array,
  labels: Array,
  zeros: dict[str, Array],
  *,
  skips_only: bool,
) -> tuple[Array, dict[str, dict[str, Array]]]:
  """Returns the loss, and what was measured on the way to it.

  Args:
    model: the network.
    variables: variables of the network.
    images: normalized images.
    labels: labels of the images.
    zeros: zeros that are added to the outputs of the stem and the blocks, by
      name: the gradient of the loss at them is that at the outputs.
    skips_only: whether no gradient passes through any F.

  Returns:
    The mean cross-entropy, and by the name of the block or layer: "outputs",
    "residual", "cosine", "responses".
  """
  outputs, residual, cosine, responses = {}, {}, {}, {}
  branches, skips = {}, {}

  def measure(
    call: Callable, arguments: tuple, keywords: dict, context: Any
  ) -> Any:
    module, result = context.module, call(*arguments, **keywords)
    if context.method_name != "__call__" or not module.path:
      return result
    block, *inside = module.path
    if module.path == ("stem",):
      before_pool, outputs["stem"] = result
      return before_pool, outputs["stem"] + zeros.get("stem", 0.0)
    if isinstance(module, StochasticDepth):  # The last module of F.
      branches[block] = result
      return jax.lax.stop_gradient(result) if skips_only else result
    if isinstance(module, Shortcut):
      skips[block] = result
    elif _is_layer(module, model) and "shortcut" not in inside:
      responses["/".join(module.path)] = jnp.std(result)
    elif re.fullmatch(r"stage\d+_block\d+", block) and not inside:
      outputs[block], x = result, skips[block]
      if model.shortcut != "none":
        size = jnp.linalg.norm(x.ravel())
        residual[block] = jnp.linalg.norm(branches[block].ravel()) / size
        cosine[block] = (result * x).sum() / (
          size * jnp.linalg.norm(result.ravel())
        )
      return result + zeros.get(block, 0.0)
    return result

  with nn.intercept_methods(measure):
    logits, _ = model.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses.mean(), {
    "outputs": outputs,
    "residual": residual,
    "cosine": cosine,
    "responses": responses,
  }


def _is_layer(module: nn.Module, model: ResNet) -> bool:
  return isinstance(module, NORMS.get(model.norm, nn.Conv))


def _probe(
  model: ResNet,
  loss: Array,
  measured: dict[str, dict[str, Array]],
  gradients: dict[str, Array],
  skip_gradients: dict[str, Array] | None,
) -> Probe:
  """Returns the numbers of a probe.

  Args:
    model: the network.
    loss: mean cross-entropy.
    measured: second result of `_loss`.
    gradients: gradients at the outputs of the stem and the blocks, by name.
    skip_gradients: the same if no gradient passes through any F; None in a
      plain net.
  """
  outputs, residual, cosine = (
    measured[key] for key in ("outputs", "residual", "cosine")
  )
  names = ["stem", *model.block_names]

  def position(layer):
    module, _, rest = layer.partition("/")
    return names.index(module) if module in names else len(names), rest

  return Probe(
    images=len(outputs["stem"]),
    loss=float(loss),
    stem_gradient=_norm(gradients["stem"]),
    blocks=[
      BlockProbe(
        name=name,
        gradient=_norm(gradients[name]),
        gradient_by_skips=_norm(skip_gradients[name])
        if skip_gradients
        else None,
        residual=float(residual[name]) if skip_gradients else None,
        cosine=float(cosine[name]) if skip_gradients else None,
        open=1.0 if model.pre_activation else float((outputs[name] > 0).mean()),
      )
      for name in model.block_names
    ],
    responses={
      layer: float(measured["responses"][layer])
      for layer in sorted(measured["responses"], key=position)
    },
  )


def _norm(x: Array) -> float:
  return float(jnp.linalg.norm(x.ravel()))
