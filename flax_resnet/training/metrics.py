"""Loss and accuracy: sums on the device, means where they are logged."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

# "loss", "top1", "top5": sums over examples; "count": number of examples. On
# the device, float32 [] and int32 [], or in NumPy.
Sums = dict[str, Any]


def zeros() -> Sums:
  """Returns the sums over no example.

  In NumPy, so that they can be put onto any mesh, of several hosts too.
  """
  return {key: np.zeros((), np.float32) for key in ("loss", "top1", "top5")} | {
    "count": np.zeros((), np.int32)
  }


def sums(
  losses: Float[Array, " b"],
  logits: Float[Array, "b n"],
  labels: Int[Array, " b"] | UInt8[Array, "b n"],
  mask: Bool[Array, " b"],
) -> Sums:
  """Returns the sums over the examples of a batch that `mask` marks.

  Of examples with several labels, "top1" and "top5" stay 0.
  """
  if labels.ndim == 1:
    rank = ranks(logits, labels[:, None])
  else:
    rank = jnp.full(len(labels), logits.shape[-1])
  return {
    "loss": jnp.where(mask, losses, 0).sum(
      dtype=jnp.promote_types(losses.dtype, jnp.float32)
    ),
    "top1": (mask & (rank < 1)).sum(dtype=jnp.float32),
    "top5": (mask & (rank < 5)).sum(dtype=jnp.float32),
    "count": mask.sum(dtype=jnp.int32),
  }


def ranks(
  logits: Float[Array, "b n"], label: Int[Array, "b 1"]
) -> Int[Array, " b"]:
  """Returns how many classes come before the true one, in argmax's order."""
  # Of equals the first comes first; NaN comes before all.
  true = jnp.take_along_axis(logits, label, axis=-1)
  classes = jnp.arange(logits.shape[-1])[None]
  before = jnp.where(classes < label, ~(logits < true), ~(logits <= true))
  return (before & (classes != label)).sum(-1)


def add(a: Sums, b: Sums) -> Sums:
  """Returns the sums over both, in the dtypes of `a`."""
  return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


def means(total: Sums) -> dict[str, float]:
  """Returns the means of sums, on the host: it waits for the device.

  Returns:
    "loss" in nats, "top1" and "top5" as shares, in [0, 1], NaN over no example;
    "count", an int.
  """
  host = jax.device_get(total)
  count = int(host["count"])
  means = {
    key: float(host[key]) / count if count else math.nan
    for key in ("loss", "top1", "top5")
  }
  return means | {"count": count}
