"""Optimizers of the published recipes.

All but SGD look at one layer at a time, also where several lie in one array,
see `by_layer`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import optax

from flax_resnet.models.variables import stack, unstack
from flax_resnet.schema import NotNegative, Positive, Range, Rate
from flax_resnet.training.freezing import Freezing, NOTHING

# Numbers that the authors of an optimizer add to a divisor.
_EPS = {"adamw": 1e-8, "lamb": 1e-6, "lars": 0.0}


def make_optimizer(
  rate: optax.Schedule,
  block_names: Sequence[str] = (),
  freezing: Freezing = NOTHING,
  *,
  name: Literal["sgd", "muon", "adamw", "lamb", "lars"],
  momentum: Rate = 0.9,
  nesterov: bool = False,
  weight_decay: NotNegative = 0.0,
  betas: Sequence[Rate] = (0.9, 0.999),
  eps: NotNegative | None = None,
  trust_coefficient: Positive = 0.001,
  clip_norm: NotNegative = 0.0,
  decay_all: bool = False,
  layer_decay: Annotated[float, Range(above=0, maximum=1)] = 1.0,
  head_rate_factor: Positive = 1.0,
) -> optax.GradientTransformation:
  """Returns an optimizer of the parameters of a network.

  Args:
    rate: learning rate as a function of the completed updates.
    block_names: names of the blocks of the network, first to last, of
      `layer_decay`.
    freezing: what of the network is not trained at first; where it is trained
      later, the optimizer begins with it then.
    name: optimizer: `sgd`, that of the ResNet papers, `muon`, which learns more
      from few epochs, `adamw`, `lamb` or `lars`.
    momentum: share of itself that the sum of the gradients keeps, in [0, 1), of
      "sgd", "muon" and "lars"; default 0.9.
    nesterov: whether the momentum is Nesterov's; default False.
    weight_decay: factor of the kernels that is taken off, 0 or more; default 0.
    betas: shares of themselves that the means of the gradients and of their
      squares keep, in [0, 1), of "adamw" and "lamb"; default (0.9, 0.999).
    eps: number that is added to a divisor, 0 or more, of "adamw", "lamb" and
      "lars"; default None: 1e-8, 1e-6 and 0, as their authors have it.
    trust_coefficient: share of its own norm by which a kernel moves at a rate
      of 1, above 0, of "lars"; default 0.001.
    clip_norm: largest norm of the gradient over all parameters together, to
      which a longer one is shortened (Pascanu et al. 2013,
      https://arxiv.org/abs/1211.5063); default 0: no limit.
    decay_all: whether scales and biases are decayed as well, as PyTorch does
      by default, of "sgd"; default False.
    layer_decay: factor of the learning rate from each block to the one before
      it, in (0, 1], see `layer_scales`; default 1.
    head_rate_factor: factor of the learning rate of the head, above 0; default
      1.

  Raises:
    ValueError: if there are not two `betas`, or `decay_all` with another
      optimizer than "sgd".
  """
  if len(betas) != 2:
    raise ValueError(f"betas has {len(betas)} numbers: use 2")
  if decay_all and name != "sgd":
    raise ValueError(
      f"decay_all is an option of sgd: set it to False, or name, which is "
      f"{name}, to sgd"
    )
  if eps is None:
    eps = _EPS.get(name, 0.0)
  match name:
    case "sgd":
      optimizer = sgd(rate, momentum, nesterov, weight_decay, decay_all)
    case "muon":
      optimizer = muon(rate, momentum, nesterov, weight_decay)
    case "adamw":
      optimizer = adamw(rate, betas, weight_decay, eps)
    case "lamb":
      optimizer = lamb(rate, betas, weight_decay, eps)
    case "lars":
      optimizer = lars(
        rate, momentum, nesterov, weight_decay, trust_coefficient, eps
      )
  if layer_decay < 1 or head_rate_factor != 1:
    scales = layer_scales(block_names, layer_decay, head_rate_factor)
    optimizer = optax.chain(optimizer, by_layer(_scale_by_module(scales)))
  if freezing and freezing.until is not None:
    optimizer = thawing(optimizer, freezing)
  if clip_norm:
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
  return optimizer


def layer_scales(
  block_names: Sequence[str], layer_decay: float, head_rate_factor: float
) -> dict[str, float]:
  """Returns the factor of the learning rate of each module of a network.

  Layer-wise decay as timm groups a ResNet: the stem, each block, the head, each
  learning `layer_decay` times as fast as the one after it (Howard & Ruder 2018,
  https://arxiv.org/abs/1801.06146, section 3.1; Bao et al. 2021,
  https://arxiv.org/abs/2106.08254). The last norm of a pre-activation net
  belongs to its last block.
  """
  depth = len(block_names)
  scales = {
    name: layer_decay ** (depth - number)
    for number, name in enumerate(block_names)
  }
  return {
    "stem": layer_decay ** (depth + 1),
    **scales,
    "bn": layer_decay,
    "head": head_rate_factor,
  }


def _scale_by_module(scales: dict[str, float]) -> optax.GradientTransformation:
  """Scales the updates of each module by its number."""

  def scale(updates: Any, params: Any) -> Any:
    del params
    return {
      name: jax.tree.map(lambda x, name=name: x * scales[name], tree)
      for name, tree in updates.items()
    }

  return optax.stateless(scale)


class Groups(NamedTuple):
  """The states of an optimizer of two parts of a network.

  Attributes:
    trained: state of the part that is trained from the start.
    thawed: state of the part that is trained later.
  """

  trained: optax.OptState
  thawed: optax.OptState


def thawing(
  optimizer: optax.GradientTransformation, freezing: Freezing
) -> optax.GradientTransformation:
  """Returns an optimizer of a part of a network, and later of the rest.

  Each part has a state of its own, as each parameter has in PyTorch: moments of
  the rest, and the number of updates that corrects them, begin with its first
  gradient. The learning rate is that of the run.
  """

  def init(params):
    trained, frozen = freezing.split(params)
    return Groups(optimizer.init(trained), optimizer.init(frozen))

  def update(updates: Any, state: Any, params: Any = None):
    trained, frozen = freezing.split(updates)
    one, other = (None, None) if params is None else freezing.split(params)
    changes: Any
    changes, new = optimizer.update(trained, state.trained, one)
    if not frozen:
      return changes, state._replace(trained=new)
    thawed = _at_the_step_of(state.trained, state.thawed)
    more: Any
    more, thawed = optimizer.update(frozen, thawed, other)
    return {**changes, **more}, Groups(new, thawed)

  return optax.GradientTransformation(init, update)


def _at_the_step_of(one: optax.OptState, other: optax.OptState):
  """Returns the second state, with the first one's place in the schedule."""

  def of_schedule(path, value):
    del value
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

  step = optax.tree_utils.tree_get(one, "count", filtering=of_schedule)
  return optax.tree_utils.tree_set(other, of_schedule, count=step)


def sgd(
  rate: optax.Schedule,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  decay_all: bool = False,
) -> optax.GradientTransformation:
  """Returns SGD as the ResNet papers and PyTorch have it.

  Weight decay is an L2 term: it is added to the gradient before the momentum.
  """
  mask = None if decay_all else kernel_mask
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=mask),
    optax.sgd(rate, momentum=momentum or None, nesterov=nesterov),
  )


def muon(
  rate: optax.Schedule, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
  """Returns Muon for the convolutions and SGD for all else.

  Jordan 2024, https://kellerjordan.github.io/posts/muon: the momentum of a
  kernel [h, w, c, features], as a matrix [h w c, features], is replaced by the
  nearest matrix with orthonormal columns (or rows), so that every direction
  learns at the same pace. Weight decay is decoupled: a step takes
  `rate * weight_decay` of a kernel.
  """
  matrix = optax.contrib.MuonDimensionNumbers(
    reduction_axis=(0, 1, 2), output_axis=3
  )
  orthogonalize = optax.contrib.scale_by_muon(
    beta=momentum,
    nesterov=nesterov,
    weight_dimension_numbers=lambda kernels: jax.tree.map(
      lambda _: matrix, kernels
    ),
  )
  return by_layer(
    optax.chain(
      optax.partition(
        {"muon": orthogonalize, "sgd": optax.trace(momentum, nesterov)},
        lambda params: jax.tree.map(
          lambda p: "muon" if p.ndim == 4 else "sgd", params
        ),
      ),
      optax.add_decayed_weights(weight_decay, mask=kernel_mask),
      optax.scale_by_learning_rate(rate),
    )
  )


def adamw(
  rate: optax.Schedule, betas: Sequence[float], weight_decay: float, eps: float
) -> optax.GradientTransformation:
  """Returns Adam with decoupled weight decay, as PyTorch has it.

  Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. A step takes
  `rate * weight_decay` of a kernel.
  """
  b1, b2 = betas
  return by_layer(
    optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=kernel_mask)
  )


def lamb(
  rate: optax.Schedule, betas: Sequence[float], weight_decay: float, eps: float
) -> optax.GradientTransformation:
  """Returns LAMB as timm has it, which trained "ResNet strikes back".

  You et al. 2020, https://arxiv.org/abs/1904.00962; Wightman et al. 2021,
  https://arxiv.org/abs/2110.00476. Unlike `optax.lamb`, scales and biases are
  not scaled by their norms; timm's also has `clip_norm=1.0`.
  """
  b1, b2 = betas
  return by_layer(
    optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      optax.add_decayed_weights(weight_decay, mask=kernel_mask),
      _scale_by_trust_ratio(),
      optax.scale_by_learning_rate(rate),
    )
  )


def lars(
  rate: optax.Schedule,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  trust_coefficient: float,
  eps: float,
) -> optax.GradientTransformation:
  """Returns LARS; scales and biases get SGD without weight decay, as in MLPerf.

  You et al. 2017, https://arxiv.org/abs/1708.03888. As in `optax.lars`, a
  kernel's norm is divided by that of gradient plus decay, where the paper adds
  the norms of the two.
  """
  return by_layer(
    optax.chain(
      optax.add_decayed_weights(weight_decay, mask=kernel_mask),
      _scale_by_trust_ratio(trust_coefficient, eps),
      optax.scale_by_learning_rate(rate),
      optax.trace(momentum, nesterov),
    )
  )


def _scale_by_trust_ratio(
  coefficient: float = 1.0, eps: float = 0.0
) -> optax.GradientTransformation:
  """Scales the update of each kernel to a share of the kernel's own norm.

  Scales and biases keep theirs: their norms say little, and are 0 at first.
  """
  ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient, eps=eps)
  return optax.masked(ratio, kernel_mask)


def kernel_mask(params: Any) -> Any:
  """Returns a tree that is True at the kernels, which alone are decayed.

  Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.3. By name, as
  the scales of `scan=True` lie in a matrix.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def by_layer(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns an optimizer that sees the layers of `scan=True` one by one.

  There, the kernels of several blocks lie in one array, which has one norm, and
  their scales in a matrix, which looks like a kernel.
  """

  def init(params):
    return optimizer.init(_unstacked(params))

  def update(updates, state, params=None):
    if not _is_stacked(updates):
      return optimizer.update(updates, state, params)
    single = None if params is None else _unstacked(params)
    updates, state = optimizer.update(_unstacked(updates), state, single)
    return stack({"params": updates})["params"], state

  return optax.GradientTransformation(init, update)


def _unstacked(params: Any) -> Any:
  if not _is_stacked(params):
    return params
  return unstack({"params": params})["params"]


def _is_stacked(params: Any) -> bool:
  return any(name.endswith("_blocks") for name in params)
