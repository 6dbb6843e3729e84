"""The residual network: a stem, stages of residual blocks, a linear head."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.models.fields import check_fields
from flax_resnet.models.layers import at_least_float32, Layers
from flax_resnet.models.plan import BlockPlan, plan_stages
from flax_resnet.models.stem import Stem


class ResNet(nn.Module):
  """The residual network of He et al. 2015 (arXiv:1512.03385).

  Parameters are named as the paper speaks of them: `stem/conv`,
  `stage1_block1/conv1`, `stage2_block1/shortcut/conv`, `head`.

  Attributes:
    stage_sizes: Blocks of each stage.
    block: The class of the blocks, or a `functools.partial` of it: see
      `BasicBlock`, `BottleneckBlock`, `PreActBasicBlock`,
      `PreActBottleneckBlock`.
    stage_features: `features` of the blocks of each stage; from the second
      stage on, the first block halves height and width.
    stem: See `stem.Stem`.
    stem_features: Channels after the stem; None for those of the first stage.
    num_classes: Width of the head; 0 for no head: pooled features come out.
    shortcut: See `shortcut.Shortcut`.
    use_bias: Biases in the convolutions of the blocks.
    zero_init_residual: Start each block as its shortcut: the last scale of its
      F(x) is 0, or, in a pre-activation block, the last kernel.
    stochastic_depth: The rate at which the last block is dropped in training;
      that of the others rises to it evenly from 0 (Huang et al. 2016).
    dropout: Rate within the blocks, in training (Wide ResNets only).
    head_dropout: Rate at which pooled features are dropped before the head, in
      training (Bello et al. 2021, section 5).
    output_stride: Input size over that of the last map: strides beyond it
      become dilations (Chen et al. 2017, arXiv:1706.05587). None for all
      strides. The parameters are the same.
    space_to_depth: Compute the 7x7 stem on 2x2 pixels as channels: the same
      parameters and outputs.
    remat: Compute what is inside a block again for its gradient, instead of
      keeping it: less memory, a third more work.
    scan: Run the equal blocks of a stage as one loop: a deep net compiles as
      fast as a shallow one, and a step takes up to a third longer on CPU.
      Their parameters are stacked, see `stacking`.
    norm: "batch", or "none": biases in all convolutions and no BatchNorm.
    norm_group_size: How many examples, in batch order, BatchNorm normalises
      together; None for the whole (global) batch.
    dtype: What is computed in. Statistics and logits are float32 or better.
    param_dtype: What parameters are kept in.

  Raises:
    ValueError: For a field that cannot be.
  """

  stage_sizes: Sequence[int]
  block: Callable[..., nn.Module]
  stage_features: Sequence[int] = (64, 128, 256, 512)
  stem: str = "imagenet"
  stem_features: int | None = None
  num_classes: int = 1000
  shortcut: str = "projection"
  use_bias: bool = False
  zero_init_residual: bool = False
  stochastic_depth: float = 0.0
  dropout: float = 0.0
  head_dropout: float = 0.0
  output_stride: int | None = None
  space_to_depth: bool = False
  remat: bool = False
  scan: bool = False
  norm: str = "batch"
  norm_group_size: int | None = None
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @property
  def layers(self) -> Layers:
    return Layers(
      self.norm == "batch",
      self.norm_group_size,
      self.dtype,
      self.param_dtype,
    )

  @property
  def pre_activation(self) -> bool:
    """Whether BatchNorm and ReLU come before the convolutions of a block."""
    block: Any = getattr(self.block, "func", self.block)
    return block.pre_activation

  def setup(self):
    if self.num_classes:
      self.drop = nn.Dropout(self.head_dropout)
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
        the running ones: then apply with `mutable=["batch_stats"]`. With
        `stochastic_depth`, `dropout` or `head_dropout`, also with
        `rngs={"dropout": key}`.
    """
    last = self.features(images, train=train)[f"stage{len(self.stage_sizes)}"]
    pooled = last.astype(at_least_float32(self.dtype)).mean((1, 2))
    if not self.num_classes:
      return pooled
    return self.head(self.drop(pooled, deterministic=not train))

  @nn.compact
  def features(
    self, images: Float[Array, "b h w c"], *, train: bool
  ) -> dict[str, Float[Array, "b _ _ _"]]:
    """Returns the map after the stem (before its pool) and after each stage.

    Args:
      images: Normalised images.
      train: As in `__call__`.

    Returns:
      "stem", "stage1", "stage2", ... to maps [b, h, w, c]. In a pre-activation
      net the last one is that after the last BatchNorm and ReLU.
    """
    stem = Stem(
      self.stem,
      self.stem_features or self.stage_features[0],
      self.pre_activation,
      self.space_to_depth,
      self.layers,
      name="stem",
    )
    maps = {}
    maps["stem"], x = stem(images.astype(self.dtype), train=train)
    for stage, plans in enumerate(plan_stages(self), start=1):
      x = self._run(f"stage{stage}", plans, x, train)
      maps[f"stage{stage}"] = x
    if self.pre_activation:
      x = nn.relu(self.layers.norm(name="bn")(x, train=train))
      maps[f"stage{len(self.stage_sizes)}"] = x
    return maps

  def _run(
    self, stage: str, plans: Sequence[BlockPlan], x: Array, train: bool
  ) -> Array:
    """Applies the blocks of a stage, the equal ones in a loop if so asked."""

    def apply(block, x, drop_rate):
      return block(x, drop_rate, train=train)

    if self.remat:
      apply = nn.remat(apply)
    alone = plans[:1] if self.scan else plans
    for number, plan in enumerate(alone, start=1):
      block = self._make_block(plan, f"{stage}_block{number}")
      x = apply(block, x, plan.drop_rate)
    if equal := plans[len(alone) :]:
      loop = nn.scan(
        lambda block, x, drop_rate: (
          apply(block, x, 0.0 if drop_rate is None else drop_rate),
          None,
        ),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        length=len(equal),
      )
      block = self._make_block(equal[0], f"{stage}_blocks")
      rates = [plan.drop_rate for plan in equal]
      x, _ = loop(block, x, jnp.asarray(rates) if any(rates) else None)
    return x

  def _make_block(self, plan: BlockPlan, name: str) -> nn.Module:
    # Only Wide ResNet's block knows dropout, see `check_fields`.
    dropout = {"dropout": self.dropout} if self.dropout else {}
    return self.block(
      plan.features,
      strides=plan.strides,
      dilations=plan.dilations,
      shortcut=self.shortcut,
      use_bias=self.use_bias,
      zero_init_residual=self.zero_init_residual,
      layers=self.layers,
      name=name,
      **dropout,
    )
