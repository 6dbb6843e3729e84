"""The residual network: a stem, stages of residual blocks, a linear head."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet import schema
from flax_resnet.models.consistency import check_together
from flax_resnet.models.layers import Layers
from flax_resnet.models.norms import at_least_float32, NormKind
from flax_resnet.models.pools import Downsampling, global_pool, GlobalPool
from flax_resnet.models.shortcut import ShortcutKind
from flax_resnet.models.stem import Stem, stem_stride, StemKind
from flax_resnet.schema import Count, Range, Rate

Features = Annotated[int, Range(minimum=1, maximum=2**16)]
Classes = Annotated[int, Range(minimum=0, maximum=10_000_000)]
BlockClass = Annotated[Callable[..., nn.Module], "a class of blocks"]
FloatType = Annotated[DTypeLike, "float32, bfloat16, float16 or float64"]


class ResNet(nn.Module):
  """The residual network of He et al. 2015 (arXiv:1512.03385).

  Parameters are named as in the paper: `stem/conv`, `stage1_block1/conv1`,
  `stage2_block1/shortcut/conv`, `head`.

  Attributes:
    stage_sizes: number of blocks of each stage.
    block: class of the blocks, or a `functools.partial` of it, or one for each
      stage: `BasicBlock`, `BottleneckBlock`, `PreActBasicBlock`,
      `PreActBottleneckBlock`, `ResNeStBlock`.
    stage_features: `features` of the blocks of each stage; from the second
      stage on, the first block halves height and width.
    block_widths: channels of the convolutions of each block of a pruned net,
      first to last; None for those that follow from `stage_features`.
    stem: kind of the stem, see `Stem`; default "imagenet".
    stem_features: channels after the stem; None for those of the first stage.
    num_classes: width of the head; 0 for no head: the outputs are pooled
      features.
    global_pool: what the last map is pooled by: "avg"; "max"; "avgmax", half of
      their sum; "catavgmax", both, side by side; or "none", for the map as it
      is, with `num_classes=0`; default "avg".
    shortcut: kind of the shortcuts, see `Shortcut`; default "projection".
    downsampling: what halves the maps, see `antialiased` and `Stem`: "stride",
      "average" or "blur"; default "stride".
    use_bias: whether the convolutions of the blocks have a bias.
    zero_init_residual: whether each block starts as its shortcut, see
      `ResidualBlock`.
    stochastic_depth: rate at which the last block is dropped in training, in
      [0, 1); that of the others rises to it evenly from 0 (Huang et al. 2016,
      arXiv:1603.09382).
    dropout: rate within the blocks in training, in [0, 1); Wide ResNets only.
    head_dropout: rate of the pooled features before the head in training, in
      [0, 1) (Bello et al. 2021, arXiv:2103.07579, section 5).
    output_stride: ratio of the height of the input to that of the last map:
      strides beyond it become dilations (Chen et al. 2017, arXiv:1706.05587).
      None for all strides. The parameters are the same.
    space_to_depth: whether the 7x7 stem is computed on 2x2 pixels as channels:
      the same parameters and outputs.
    remat: whether the inside of a block is computed again for its gradient:
      less memory, a third more work.
    scan: whether the equal blocks of a stage run as one loop: a deep net
      compiles as fast as a shallow one, and a step takes up to a third longer
      on CPU. Their parameters are stacked, see `variables.stack`.
    norm: kind of the norms: "batch"; "group" (`GroupNorm`); "evonorm" and
      "filter_response", which have activations of their own; or "none", and a
      bias in every convolution; default "batch".
    weight_standardization: whether the kernels are standardized, see
      `layers.standardized`.
    norm_group_size: number of examples, in batch order, that BatchNorm
      normalizes together; None for the whole (global) batch.
    dtype: dtype of the computation. Statistics and logits are float32 or
      better.
    param_dtype: dtype of the parameters.

  Raises:
    ValueError: for a field of the wrong type or out of its range, or fields
      that do not go together.
  """

  stage_sizes: Sequence[Count]
  block: BlockClass | Sequence[BlockClass]
  stage_features: Sequence[Features] = (64, 128, 256, 512)
  block_widths: Sequence[Sequence[Features]] | None = None
  stem: StemKind = "imagenet"
  stem_features: Features | None = None
  num_classes: Classes = 1000
  global_pool: GlobalPool = "avg"
  shortcut: ShortcutKind = "projection"
  downsampling: Downsampling = "stride"
  use_bias: bool = False
  zero_init_residual: bool = False
  stochastic_depth: Rate = 0.0
  dropout: Rate = 0.0
  head_dropout: Rate = 0.0
  output_stride: Count | None = None
  space_to_depth: bool = False
  remat: bool = False
  scan: bool = False
  norm: NormKind = "batch"
  weight_standardization: bool = False
  norm_group_size: Count | None = None
  dtype: FloatType = jnp.float32
  param_dtype: FloatType = jnp.float32

  def __post_init__(self):
    schema.check_fields(self)
    for field in schema.parameters_of(type(self)):
      # Lists, as JSON has them, have no hash, by which programs are found.
      object.__setattr__(self, field, _tuples(getattr(self, field)))
    check_together(self)
    super().__post_init__()

  @property
  def layers(self) -> Layers:
    """How the convolutions and norms of the network are made."""
    return Layers(
      self.norm,
      self.norm_group_size,
      self.weight_standardization,
      self.dtype,
      self.param_dtype,
    )

  @property
  def stage_blocks(self) -> Sequence[Any]:
    """The class of the blocks of each stage."""
    if isinstance(self.block, Sequence):
      return self.block
    return [self.block] * len(self.stage_sizes)

  @property
  def pre_activation(self) -> bool:
    """Whether the norms come before the convolutions of a block."""
    block = self.stage_blocks[0]
    return getattr(block, "func", block).pre_activation

  @property
  def block_names(self) -> list[str]:
    """The names of the blocks, "stage1_block1", ..., first to last."""
    return [
      f"stage{stage}_block{number}"
      for stage, size in enumerate(self.stage_sizes, start=1)
      for number in range(1, size + 1)
    ]

  def setup(self):
    if self.num_classes:
      self.drop = nn.Dropout(self.head_dropout)
      self.classifier = nn.Dense(
        self.num_classes,
        # Goyal et al. 2017, section 5.1.
        kernel_init=nn.initializers.normal(0.01),
        dtype=at_least_float32(self.dtype),
        param_dtype=self.param_dtype,
        name="head",
      )

  def __call__(
    self,
    images: Float[Array, "b h w c"],
    *,
    train: bool,
    frozen_stages: int | None = None,
  ) -> Float[Array, "b n"] | Float[Array, "b h2 w2 n"]:
    """Returns logits, or pooled features if `num_classes` is 0.

    Args:
      images: normalized images.
      train: whether to normalize with the statistics of the batch, and update
        the running ones: then apply with `mutable=["batch_stats"]`. With
        `stochastic_depth`, `dropout` or `head_dropout`, also with
        `rngs={"dropout": key}`.
      frozen_stages: number of the first stages that work as in evaluation in
        training too, with the stem before them; 0 for the stem alone; None
        (default) for nothing.
    """
    maps = self.features(images, train=train, frozen_stages=frozen_stages)
    return self.logits(maps[f"stage{len(self.stage_sizes)}"], train=train)

  @property
  def head(self) -> Callable[..., Array]:
    """What `method="head"` calls: `logits`.

    `nnx.bridge` takes a method of a name for the parameters of that name.
    """
    return self.logits

  def logits(
    self, last: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b n"] | Float[Array, "b h w n"]:
    """Returns what `__call__` does, from the last map of `features`."""
    last = last.astype(at_least_float32(self.dtype))
    pooled = global_pool(last, self.global_pool)
    if not self.num_classes:
      return pooled
    return self.classifier(self.drop(pooled, deterministic=not train))

  @nn.compact
  def features(
    self,
    images: Float[Array, "b h w c"],
    *,
    train: bool,
    frozen_stages: int | None = None,
  ) -> dict[str, Float[Array, "b _ _ _"]]:
    """Returns the map after the stem (before its pool) and after each stage.

    Args:
      images: normalized images.
      train: as in `__call__`.
      frozen_stages: as in `__call__`.

    Returns:
      Maps [b, h, w, c] by name: "stem", "stage1", "stage2", ... In a
      pre-activation net the last one is taken after the last BatchNorm and
      ReLU.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}: give normalized "
        "images, float [b, h, w, c]"
      )
    stem = Stem(
      self.stem,
      self.stem_features or self.stage_features[0],
      self.downsampling,
      self.pre_activation,
      self.space_to_depth,
      self.layers,
      name="stem",
    )
    frozen = -1 if frozen_stages is None else frozen_stages
    if not -1 <= frozen <= len(self.stage_sizes):
      raise ValueError(
        f"frozen_stages is {frozen_stages}: use 0 to {len(self.stage_sizes)}"
      )
    maps = {}
    maps["stem"], x = stem(
      images.astype(self.dtype), train=train and frozen < 0
    )
    for stage, (options, drop_rates) in enumerate(self._stages(), start=1):
      x = self._apply_stage(
        f"stage{stage}", options, drop_rates, x, train and frozen < stage
      )
      maps[f"stage{stage}"] = x
    if self.pre_activation:
      x = self.layers.norm(activate=True, name="bn")(x, train=train)
      maps[f"stage{len(self.stage_sizes)}"] = x
    return maps

  def _stages(self) -> Iterator[tuple[list[dict[str, Any]], list[float]]]:
    """Yields a stage's fields of each block, and its rates of stochastic depth.

    All blocks of a stage but the first have the same fields.
    """
    stride, dilation = stem_stride(self.stem), 1
    number, last = 0, max(sum(self.stage_sizes) - 1, 1)
    for stage, size in enumerate(self.stage_sizes):
      before, strides = dilation, 1
      if stage > 0 and self.output_stride and stride >= self.output_stride:
        dilation *= 2
      elif stage > 0:
        stride, strides = 2 * stride, 2
      block, features = self.stage_blocks[stage], self.stage_features[stage]
      first = {"strides": strides, "dilations": (before, dilation)}
      rest = {"strides": 1, "dilations": (dilation, dilation)}
      yield (
        [
          {
            "block": block,
            "features": features,
            **o,
            **self._widths(number + i),
          }
          for i, o in enumerate([first] + [rest] * (size - 1))
        ],
        [self.stochastic_depth * (number + i) / last for i in range(size)],
      )
      number += size

  def _apply_stage(
    self,
    stage: str,
    options: Sequence[dict[str, Any]],
    drop_rates: Sequence[float],
    x: Array,
    train: bool,
  ) -> Array:
    """Applies the blocks of a stage, with `scan` the equal ones in a loop."""

    def apply(block, x, drop_rate):
      # The rate stays a number: a block that drops nothing needs no key.
      def compute(block, x):
        return block(x, drop_rate, train=train)

      return (nn.remat(compute) if self.remat else compute)(block, x)

    unrolled = 1 if self.scan else len(options)
    for number in range(unrolled):
      block = self._block(f"{stage}_block{number + 1}", **options[number])
      x = apply(block, x, drop_rates[number])
    if unrolled == len(options):
      return x
    rates = drop_rates[unrolled:]
    loop = nn.scan(
      lambda block, x, drop_rate: (
        apply(block, x, 0.0 if drop_rate is None else drop_rate),
        None,
      ),
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True, "dropout": True},
      length=len(rates),
    )
    block = self._block(f"{stage}_blocks", **options[-1])
    x, _ = loop(block, x, jnp.asarray(rates) if any(rates) else None)
    return x

  def _widths(self, block: int) -> dict[str, Any]:
    return {"widths": self.block_widths[block]} if self.block_widths else {}

  def _block(self, name: str, block: Any, **options: Any) -> nn.Module:
    # Not all blocks have these.
    if self.dropout:
      options["dropout"] = self.dropout
    if self.downsampling != "stride":
      options["downsampling"] = self.downsampling
    return block(
      shortcut=self.shortcut,
      use_bias=self.use_bias,
      zero_init_residual=self.zero_init_residual,
      layers=self.layers,
      name=name,
      **options,
    )


def _tuples(value: Any) -> Any:
  return (
    tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
  )
