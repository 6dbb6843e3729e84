"""The names that code bases give to the layers of a ResNet: tables of data."""

from collections.abc import Iterable, Mapping
import dataclasses
import re

# A path of this package: ("params", "stage1_block2", "conv1", "kernel").
Path = tuple[str, ...]

# The name of each array of a layer in PyTorch.
_ARRAYS = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "v": "v",
  "tau": "tau",
  "mean": "running_mean",
  "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Convention:
  """The names of a code base.

  Attributes:
    title: owner of the names, for messages.
    mark: pattern of the names by which a file is recognized.
    block: name of a block; {stage} and {block} count from 0, {stage_number}
      from 1.
    layers: names of layers, by our name within the block ("shortcut/conv") or
      outside of blocks ("stem/conv"). Layers that are not listed have the same
      name, with dots.
    pooled: names of the layers of shortcuts that begin with a pool (ResNet-D),
      where they differ.
    conv_head: whether the head is a 1x1 convolution.
    flax: whether names and layout of the arrays are those of this package.
  """

  title: str
  mark: str
  block: str = ""
  layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pooled: Mapping[str, str] = dataclasses.field(default_factory=dict)
  conv_head: bool = False
  flax: bool = False

  def name(self, path: Path, *, pooled: bool = False) -> str:
    """Returns the name of an array: "layer1.1.conv1.weight".

    Args:
      path: path of the array in this package.
      pooled: whether the shortcuts of the network begin with a pool.
    """
    if self.flax:
      return "/".join(path)
    _, *layer, array = path
    name = _ARRAYS[array]
    block = re.fullmatch(r"stage(\d+)_block(\d+)", layer[0])
    ours = "/".join(layer[1:] if block else layer)
    name = f"{self._layer(ours, pooled)}.{name}"
    if not block:
      return name
    stage, number = int(block[1]), int(block[2])
    prefix = self.block.format(
      stage=stage - 1, stage_number=stage, block=number - 1
    )
    return f"{prefix}.{name}"

  def _layer(self, ours: str, pooled: bool) -> str:
    if pooled and ours in self.pooled:
      return self.pooled[ours]
    return self.layers.get(ours, ours.replace("/", "."))


# The stems of torchvision and timm, plain and deep (conv1 is a Sequential).
_STEM = {
  "stem/conv": "conv1",
  "stem/bn": "bn1",
  "stem/conv1": "conv1.0",
  "stem/bn1": "conv1.1",
  "stem/conv2": "conv1.3",
  "stem/bn2": "conv1.4",
  "stem/conv3": "conv1.6",
  "stem/bn3": "bn1",
  "stem/pool_conv": "maxpool.0",
  "stem/pool_bn": "maxpool.1",
}

# By the names that `convert --names` takes.
CONVENTIONS = {
  "torchvision": Convention(
    title="torchvision and timm",
    mark=r"layer1\.0\.",
    block="layer{stage_number}.{block}",
    layers={
      **_STEM,
      "shortcut/conv": "downsample.0",
      "shortcut/bn": "downsample.1",
      # Split attention.
      "conv2/bn": "conv2.bn0",
      "conv2/conv1": "conv2.fc1",
      "conv2/conv2": "conv2.fc2",
      "head": "fc",
    },
    pooled={"shortcut/conv": "downsample.1", "shortcut/bn": "downsample.2"},
  ),
  "timm_v2": Convention(
    title="timm's pre-activation nets",
    mark=r"stages\.",
    block="stages.{stage}.blocks.{block}",
    layers={
      "stem/bn": "stem.norm",
      "stem/bn1": "stem.norm1",
      "stem/bn2": "stem.norm2",
      "stem/bn3": "stem.norm3",
      "stem/pool_bn": "stem.pool_norm",
      "bn1": "norm1",
      "bn2": "norm2",
      "bn3": "norm3",
      "shortcut/conv": "downsample.conv",
      "shortcut/bn": "downsample.norm",
      "bn": "norm",
      "head": "head.fc",
    },
    conv_head=True,
  ),
  "transformers": Convention(
    title="Hugging Face transformers",
    mark=r"resnet\.embedder\.",
    block="resnet.encoder.stages.{stage}.layers.{block}",
    layers={
      "stem/conv": "resnet.embedder.embedder.convolution",
      "stem/bn": "resnet.embedder.embedder.normalization",
      "conv1": "layer.0.convolution",
      "bn1": "layer.0.normalization",
      "conv2": "layer.1.convolution",
      "bn2": "layer.1.normalization",
      "conv3": "layer.2.convolution",
      "bn3": "layer.2.normalization",
      "shortcut/conv": "shortcut.convolution",
      "shortcut/bn": "shortcut.normalization",
      "head": "classifier.1",
    },
  ),
  "cifar": Convention(
    title="the CIFAR nets of akamaster",
    mark=r"linear\.|layer1\.0\.shortcut\.",
    block="layer{stage_number}.{block}",
    layers={
      **_STEM,
      "shortcut/conv": "shortcut.0",
      "shortcut/bn": "shortcut.1",
      "head": "linear",
    },
    pooled={"shortcut/conv": "shortcut.1", "shortcut/bn": "shortcut.2"},
  ),
}
_FLAX = Convention(
  title="this package", mark="(params|batch_stats)/", flax=True
)


def recognize(names: Iterable[str]) -> Convention:
  """Returns the convention that the names of a file follow."""
  names = list(names)
  # Files of akamaster have the mark of torchvision as well: it comes last.
  for convention in (_FLAX, *reversed(CONVENTIONS.values())):
    if any(re.match(convention.mark, name) for name in names):
      return convention
  return CONVENTIONS["torchvision"]
