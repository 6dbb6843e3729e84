"""Optimizers of the published recipes, with weight decay and a schedule."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from flax_resnet.training import layerwise, schedules
from flax_resnet.training.layerwise import decayed
from flax_resnet.training.schedules import check_range


def make_optimizer(
  num_steps: int,
  batch_size: int,
  *,
  name: Literal["sgd", "muon", "adamw", "lamb", "lars"],
  learning_rate: float,
  schedule: schedules.Name,
  warmup: float,
  boundaries: Sequence[float],
  decay_rate: float,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  reference_batch_size: int | None = None,
  warmup_start: float = 0.0,
  warmup_method: schedules.Warmup = "linear",
  power: float = 2.0,
  final_rate: float = 0.0,
  betas: Sequence[float] = (0.9, 0.999),
  eps: float | None = None,
  trust_coefficient: float = 0.001,
  clip_norm: float = 0.0,
  decay_all: bool = False,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns an optimizer and its learning rate by step.

  Times are shares of the run, so that a run of another length has the same
  shape: 32,000 of 64,000 steps are 0.5.

  Args:
    num_steps: Of the whole run.
    batch_size: Of the whole run.
    name: "sgd" is that of the ResNet papers, see `sgd`; "muon" learns more from
      few epochs, see `muon`; the others are of `layerwise`.
    learning_rate: At the peak; see `reference_batch_size`.
    schedule: "cosine" falls along half a wave (Loshchilov & Hutter 2017);
      "step" multiplies by `decay_rate` at each of `boundaries`; "polynomial"
      falls as the `power` of the time that is left, as MLPerf's LARS does with
      2; "one_cycle" rises and falls along straight lines, the peak being at
      `warmup` (Smith & Topin 2018, https://arxiv.org/abs/1708.07120; as in fast
      CIFAR-10 recipes, the momentum stays as it is).
    warmup: Share of the run in which the rate rises to its peak.
    boundaries: Shares of the run, of "step".
    decay_rate: Of "step".
    momentum: 0 for none; "adamw" and "lamb" have `betas` instead.
    nesterov: Whether the momentum is Nesterov's.
    weight_decay: Factor of the kernels; see `decay_all`.
    reference_batch_size: The batch size that `learning_rate` is for: with
      another, the rate is scaled in proportion, the linear scaling rule of
      Goyal et al. 2017. None to take it as it is.
    warmup_start: The rate from which the warm-up rises; it is not scaled.
    warmup_method: "linear", or "constant" to stay at `warmup_start` until the
      end of the warm-up, as He et al. 2015 train ResNet-110.
    power: Of "polynomial".
    final_rate: Share of `learning_rate` to which all but "step" fall.
    betas: Of the means of gradients and of their squares; "adamw" and "lamb".
    eps: Added to a divisor; None for that of the optimizer's authors.
    trust_coefficient: Of "lars".
    clip_norm: Longest gradient, over all parameters together, that is not
      shortened to this length (Pascanu et al. 2013); 0 for no limit.
    decay_all: Whether scales and biases are decayed as well, as PyTorch does
      unless told otherwise; of "sgd".

  Raises:
    ValueError: For a number out of its range.
  """
  check_range("momentum", momentum, 0 <= momentum < 1, "0 or more, less than 1")
  check_range("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
  if len(betas) != 2:
    raise ValueError(f"betas has {len(betas)} numbers: use 2")
  for beta in betas:
    check_range("betas", beta, 0 <= beta < 1, "numbers from 0 to less than 1")
  if eps is not None:
    check_range("eps", eps, eps >= 0, "0 or more, or None")
  check_range(
    "trust_coefficient", trust_coefficient, trust_coefficient > 0, "more than 0"
  )
  check_range("clip_norm", clip_norm, clip_norm >= 0, "0 or more")
  if decay_all and name != "sgd":
    raise ValueError(
      f"decay_all is an option of sgd: set it to False, or name, which is "
      f"{name}, to sgd"
    )
  rate = schedules.make_schedule(
    num_steps,
    name=schedule,
    peak=_scaled(learning_rate, batch_size, reference_batch_size),
    warmup=warmup,
    warmup_start=warmup_start,
    warmup_method=warmup_method,
    boundaries=boundaries,
    decay_rate=decay_rate,
    power=power,
    final_rate=final_rate,
  )
  own_eps = {} if eps is None else {"eps": eps}
  if name in ("adamw", "lamb"):
    make = {"adamw": layerwise.adamw, "lamb": layerwise.lamb}[name]
    optimizer = make(rate, betas, weight_decay, **own_eps)
  elif name == "lars":
    optimizer = layerwise.lars(
      rate, momentum, nesterov, weight_decay, trust_coefficient, **own_eps
    )
  elif name == "muon":
    optimizer = muon(rate, momentum, nesterov, weight_decay)
  else:
    optimizer = sgd(rate, momentum, nesterov, weight_decay, decay_all=decay_all)
  if clip_norm:
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
  return optimizer, rate


def _scaled(rate: float, batch_size: int, reference: int | None) -> float:
  """Returns the learning rate for a batch size, by the linear scaling rule."""
  if reference is None:
    return rate
  check_range(
    "reference_batch_size", reference, reference >= 1, "1 or more, or None"
  )
  return rate * batch_size / reference


def sgd(
  rate: optax.Schedule,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  *,
  decay_all: bool = False,
) -> optax.GradientTransformation:
  """Returns SGD as the ResNet papers and PyTorch have it.

  Weight decay is an L2 term: it is added to the gradient before the momentum.
  """
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, mask=None if decay_all else decayed
    ),
    optax.sgd(rate, momentum=momentum or None, nesterov=nesterov),
  )


def muon(
  rate: optax.Schedule, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
  """Returns Muon for the convolutions and SGD for all else (Jordan 2024).

  The momentum of a kernel [h, w, c, features], as a matrix [h w c, features],
  is replaced by the nearest matrix with orthonormal columns (or rows), so that
  every direction learns at the same pace: https://kellerjordan.github.io/posts/muon.
  Weight decay is decoupled: a step takes `rate * weight_decay` of a kernel.
  """
  return layerwise.by_layer(
    optax.chain(
      optax.partition(
        {
          "muon": optax.contrib.scale_by_muon(
            beta=momentum,
            nesterov=nesterov,
            weight_dimension_numbers=_as_matrices,
          ),
          "sgd": optax.trace(momentum, nesterov),
        },
        lambda params: jax.tree.map(
          lambda p: "muon" if p.ndim == 4 else "sgd", params
        ),
      ),
      optax.add_decayed_weights(weight_decay, mask=decayed),
      optax.scale_by_learning_rate(rate),
    )
  )


def _as_matrices(kernels: Any) -> Any:
  matrix = optax.contrib.MuonDimensionNumbers(
    reduction_axis=(0, 1, 2), output_axis=3
  )
  return jax.tree.map(lambda _: matrix, kernels)
