"""All that an evaluation says of a classifier beyond loss and top-1.

As in `evaluation`, sums stay on the device, replicated over the mesh, and every
example that a mask marks counts once.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

from flax_resnet import sharding
from flax_resnet.augment import Normalize
from flax_resnet.models import ResNet
from flax_resnet.training import losses, metrics
from flax_resnet.training.steps import Batch

# Equal bins of [0, 1], as in Guo et al. 2017.
NUM_BINS = 15
# More classes have no confusion matrix: that of ImageNet-21k has 2 GB.
MAX_CONFUSION = 4096
Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Whether a classifier is as often right as it is sure.

  Bin i of n has the examples whose predicted class has a probability in
  (i / n, (i + 1) / n].

  Attributes:
    counts: int [n], examples of each bin.
    right: int [n], those of them that were recognized.
    confidence_sums: float [n], sums of these probabilities.
  """

  counts: np.ndarray
  right: np.ndarray
  confidence_sums: np.ndarray

  @property
  def accuracy(self) -> np.ndarray:
    """Float [n]: share of each bin that was recognized; NaN without any."""
    return shares(self.right, self.counts)

  @property
  def confidence(self) -> np.ndarray:
    """Float [n]: mean probability of each bin; NaN without any example."""
    return shares(self.confidence_sums, self.counts)

  @property
  def error(self) -> float:
    """Expected calibration error, in [0, 1] (Guo et al. 2017, equation 3).

    The mean over the examples of |accuracy - confidence| of their bin
    (arXiv:1706.04599).
    """
    count = self.counts.sum()
    gaps = np.abs(self.right - self.confidence_sums)
    return float(gaps.sum() / count) if count else math.nan

  @property
  def overconfidence(self) -> float:
    """Mean probability less accuracy, in [-1, 1]."""
    count = self.counts.sum()
    gap = self.confidence_sums.sum() - self.right.sum()
    return float(gap / count) if count else math.nan

  def __add__(self, other: "Calibration") -> "Calibration":
    return Calibration(
      self.counts + other.counts,
      self.right + other.right,
      self.confidence_sums + other.confidence_sums,
    )


@dataclasses.dataclass(frozen=True)
class Scores:
  """What an evaluation says of a classifier.

  Attributes:
    means: "loss" in nats, "top1" and "top5", in [0, 1], and "count", as
      `metrics.means` returns them.
    class_counts: int [n], examples of each class.
    class_right: int [n], those of them that were recognized.
    rank_counts: int [n], examples whose class is the most probable one, the
      second, ...
    calibration: calibration in 15 bins.
    confusion: int [n, n], examples of class i (row) that were put into class j;
      None for more than 4096 classes.
    images_per_second: pace of reading and evaluating.
  """

  means: Mapping[str, float]
  class_counts: np.ndarray
  class_right: np.ndarray
  rank_counts: np.ndarray
  calibration: Calibration
  confusion: np.ndarray | None
  images_per_second: float

  @property
  def accuracy_by_class(self) -> np.ndarray:
    """Float [n]: share of each class that was recognized; NaN without any."""
    return shares(self.class_right, self.class_counts)

  def top(self, k: int) -> float:
    """Returns the share whose class is among the `k` most probable ones."""
    count = self.rank_counts.sum()
    return float(self.rank_counts[:k].sum() / count) if count else math.nan


def shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Returns part / whole; NaN where the whole is 0."""
  nothing = np.full(len(whole), np.nan)
  return np.divide(part, whole, where=whole > 0, out=nothing)


def make_score_step(
  model: ResNet,
  normalize: Normalize,
  *,
  mesh: Mesh,
  flip: bool = False,
  columns: np.ndarray | None = None,
) -> jax.stages.Wrapped:
  """Returns the jitted function that adds a batch to the sums of `scores`.

  Args:
    model: the network.
    normalize: normalization of uint8 images.
    mesh: the devices.
    flip: whether the logits are means over each image and its mirror image;
      default False.
    columns: int [n], classes of the network that the labels of the images stand
      for, in their order; None (default) for all.

  Returns:
    (variables, sums, batch) -> sums.
  """
  logits_of = make_logits(model, normalize, flip, columns)

  def step(variables: Any, total: Sums, batch: Batch) -> Sums:
    logits = logits_of(variables, batch["image"])
    labels, mask = batch["label"], batch["mask"]
    each = losses.cross_entropy(logits, labels)
    means = metrics.sums(each, logits, labels, mask)
    return {
      "means": metrics.add(total["means"], means),
      "details": _add_details(total["details"], logits, labels, mask),
    }

  return jax.jit(step, out_shardings=sharding.replicated(mesh))


def make_logits(
  model: ResNet,
  normalize: Normalize,
  flip: bool = False,
  columns: np.ndarray | None = None,
) -> Callable[[Any, UInt8[Array, "b h w c"]], Float[Array, "b n"]]:
  """Returns the function from variables and images to logits.

  Args:
    model: the network.
    normalize: as in `make_score_step`.
    flip: as in `make_score_step`.
    columns: as in `make_score_step`.
  """

  def logits_of(variables, images):
    images = normalize(images)
    logits = cast(Array, model.apply(variables, images, train=False))
    if flip:
      mirrored = model.apply(variables, images[:, :, ::-1], train=False)
      logits = (logits + cast(Array, mirrored)) / 2
    return logits if columns is None else logits[:, columns]

  return logits_of


def predict_each(
  logits_of: Callable[[Any, UInt8[Array, "b h w c"]], Float[Array, "b n"]],
  variables: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
) -> Int[np.ndarray, " n"]:
  """Returns the most probable class of each example, in order.

  Args:
    logits_of: see `make_logits`.
    variables: as in `score`.
    batches: batches of one host, see `data.Split.eval_batches`.
    mesh: the devices.
  """

  def step(variables, batch):
    return logits_of(variables, batch["image"]).argmax(-1), batch["mask"]

  compiled = jax.jit(step, out_shardings=sharding.replicated(mesh))
  found = []
  for batch in batches:
    labels, mask = compiled(variables, sharding.shard_batch(batch, mesh))
    found.append(np.asarray(labels)[np.asarray(mask)])
  return np.concatenate(found) if found else np.zeros(0, np.int32)


def score(
  step: jax.stages.Wrapped,
  variables: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: Mesh,
  num_classes: int,
) -> Scores:
  """Returns the scores over the examples that the masks of batches mark.

  Args:
    step: see `make_score_step`.
    variables: {"params": …, "batch_stats": …}, on all devices.
    batches: this host's part of each batch, see `data.Split.eval_batches`.
    mesh: the devices.
    num_classes: number of classes, n.
  """
  zeros = {"means": metrics.zeros(), "details": _zeros(num_classes)}
  total = sharding.replicate(zeros, mesh)
  compiled, start = None, math.nan
  for batch in batches:
    batch = sharding.shard_batch(batch, mesh)
    if compiled is None:  # Of the pace it is no part.
      compiled = step.lower(variables, total, batch).compile()
      start = time.monotonic()
    total = compiled(variables, total, batch)
  means = metrics.means(total["means"])  # Waits for the device.
  seconds = time.monotonic() - start
  found = {name: np.asarray(x) for name, x in total["details"].items()}
  return Scores(
    means=means,
    **{key: found[key] for key in _BY_CLASS},
    calibration=Calibration(*(found[key] for key in _BY_BIN)),
    confusion=found.get("confusion"),
    images_per_second=means["count"] / max(seconds, 1e-9),
  )


_BY_CLASS = ("class_counts", "class_right", "rank_counts")
_BY_BIN = ("bin_counts", "bin_right", "bin_confidence")


def _zeros(num_classes: int) -> Sums:
  """Returns the sums over no example, in NumPy."""
  zeros: Sums = {name: np.zeros(num_classes, np.int32) for name in _BY_CLASS}
  zeros |= {name: np.zeros(NUM_BINS, np.int32) for name in _BY_BIN}
  zeros["bin_confidence"] = np.zeros(NUM_BINS, np.float32)
  if num_classes <= MAX_CONFUSION:
    zeros["confusion"] = np.zeros((num_classes, num_classes), np.int32)
  return zeros


def _add_details(
  total: Sums,
  logits: Float[Array, "b n"],
  labels: Int[Array, " b"],
  mask: Bool[Array, " b"],
) -> Sums:
  """Returns the sums with the examples of a batch that `mask` marks."""
  predicted = logits.argmax(-1)
  right = mask & (predicted == labels)
  confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(-1)
  # Bins are closed above. NaN, of a network that diverged, is in the first.
  bins = jnp.ceil(jnp.nan_to_num(confidence) * NUM_BINS).astype(jnp.int32) - 1
  bins = bins.clip(0, NUM_BINS - 1)
  ones, rights = mask.astype(jnp.int32), right.astype(jnp.int32)
  added = {
    "class_counts": total["class_counts"].at[labels].add(ones),
    "class_right": total["class_right"].at[labels].add(rights),
    "rank_counts": total["rank_counts"]
    .at[metrics.ranks(logits, labels[:, None])]
    .add(ones),
    "bin_counts": total["bin_counts"].at[bins].add(ones),
    "bin_right": total["bin_right"].at[bins].add(rights),
    "bin_confidence": total["bin_confidence"]
    .at[bins]
    .add(jnp.where(mask, confidence, 0)),
  }
  if "confusion" in total:
    added["confusion"] = total["confusion"].at[labels, predicted].add(ones)
  return added
