"""The residual network: a stem, stages of residual blocks, a linear head."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  SHORTCUTS,
)
from flax_resnet.models.layers import at_least_float32, Layers, max_pool

STEMS = ("imagenet", "cifar")


class ResNet(nn.Module):
  """The residual network of He et al. 2015 (arXiv:1512.03385).

  Parameters are named as the paper speaks of them: `stem/conv`,
  `stage1_block1/conv1`, `stage2_block1/shortcut/conv`, `head`.

  Attributes:
    stage_sizes: Blocks of each stage.
    block: `BasicBlock` or `BottleneckBlock`.
    stage_features: `features` of the blocks of each stage; from the second
      stage on, the first block halves height and width.
    stem: "imagenet" is a 7x7 convolution at stride 2 and a max-pool; "cifar"
      is a 3x3 convolution at stride 1.
    num_classes: Width of the head; 0 for no head: pooled features come out.
    shortcut: See `blocks.Shortcut`.
    use_bias: Biases in the convolutions of the blocks.
    zero_init_residual: Start the last scale of each block at 0.
    norm_group_size: How many examples, in batch order, BatchNorm normalises
      together; None for the whole (global) batch.
    dtype: What is computed in. Statistics and logits are float32 or better.
    param_dtype: What parameters are kept in.

  Raises:
    ValueError: For an unknown `shortcut` or `stem`, or sizes that cannot be.
  """

  stage_sizes: Sequence[int]
  block: type[BasicBlock] | type[BottleneckBlock]
  stage_features: Sequence[int] = (64, 128, 256, 512)
  stem: str = "imagenet"
  num_classes: int = 1000
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  norm_group_size: int | None = None
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    if self.shortcut not in SHORTCUTS:
      raise ValueError(
        f"unknown shortcut {self.shortcut!r}: use one of {', '.join(SHORTCUTS)}"
      )
    if self.stem not in STEMS:
      raise ValueError(
        f"unknown stem {self.stem!r}: use one of {', '.join(STEMS)}"
      )
    if len(self.stage_sizes) != len(self.stage_features):
      raise ValueError(
        f"stage_sizes has {len(self.stage_sizes)} entries and stage_features "
        f"{len(self.stage_features)}: give one of each a stage"
      )
    for field in ("dtype", "param_dtype"):
      _check_dtype(field, getattr(self, field))
    if self.num_classes < 0:
      raise ValueError(f"num_classes is {self.num_classes}: use 0 or more")
    if self.norm_group_size is not None and self.norm_group_size < 1:
      raise ValueError(
        f"norm_group_size is {self.norm_group_size}: use None for the whole "
        "batch, or 1 or more"
      )
    super().__post_init__()

  @property
  def layers(self) -> Layers:
    return Layers(self.norm_group_size, self.dtype, self.param_dtype)

  def setup(self):
    if self.num_classes:
      self.head = nn.Dense(
        self.num_classes,
        # Goyal et al. 2017, section 5.1.
        kernel_init=nn.initializers.normal(0.01),
        dtype=at_least_float32(self.dtype),
        param_dtype=self.param_dtype,
      )

  def __call__(
    self, images: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b n"]:
    """Returns logits, or pooled features if `num_classes` is 0.

    Args:
      images: Normalised images.
      train: Whether to normalise with the statistics of the batch, and update
        the running ones: then apply with `mutable=["batch_stats"]`.
    """
    last = self.features(images, train=train)[f"stage{len(self.stage_sizes)}"]
    pooled = last.astype(at_least_float32(self.dtype)).mean((1, 2))
    return self.head(pooled) if self.num_classes else pooled

  @nn.compact
  def features(
    self, images: Float[Array, "b h w c"], *, train: bool
  ) -> dict[str, Float[Array, "b _ _ _"]]:
    """Returns the map after the stem (before its pool) and after each stage.

    Args:
      images: Normalised images.
      train: As in `__call__`.

    Returns:
      "stem", "stage1", "stage2", ... to maps [b, h, w, c].
    """
    stem = Stem(self.stem, self.stage_features[0], self.layers, name="stem")
    x = stem(images.astype(self.dtype), train=train)
    maps = {"stem": x}
    if self.stem == "imagenet":
      x = max_pool(x)
    stages = zip(self.stage_sizes, self.stage_features, strict=True)
    for stage, (size, features) in enumerate(stages, start=1):
      for block in range(1, size + 1):
        x = self.block(
          features,
          strides=2 if block == 1 and stage > 1 else 1,
          shortcut=self.shortcut,
          use_bias=self.use_bias,
          zero_init_residual=self.zero_init_residual,
          layers=self.layers,
          name=f"stage{stage}_block{block}",
        )(x, train=train)
      maps[f"stage{stage}"] = x
    return maps


def _check_dtype(field: str, dtype: DTypeLike) -> None:
  try:
    if jnp.issubdtype(dtype, jnp.floating):
      return
  except TypeError:
    pass
  raise ValueError(f"{field} is {dtype!r}: use float32, bfloat16 or float64")


class Stem(nn.Module):
  """The first convolution, BatchNorm and ReLU.

  Attributes:
    kind: "imagenet" (7x7, stride 2) or "cifar" (3x3, stride 1).
    features: Output channels.
    layers: How convolutions and norms are made.
  """

  kind: str
  features: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h2 w2 c2"]:
    kernel_size, strides = (7, 2) if self.kind == "imagenet" else (3, 1)
    x = self.layers.conv(self.features, kernel_size, strides, name="conv")(x)
    return nn.relu(self.layers.norm(name="bn")(x, train=train))
