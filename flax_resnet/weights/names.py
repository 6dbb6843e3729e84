"""What other code bases call the layers of a ResNet.

A layer here is a path such as ("stage1_block2", "conv1"); elsewhere it is a
name such as "layer1.1.conv1".
"""

from collections.abc import Callable, Iterable
import dataclasses
import re

from flax_resnet.models import ResNet

Path = tuple[str, ...]

# What each array of a layer is called in PyTorch.
ARRAYS = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a code base names things.

  Attributes:
    title: Whose names these are.
    layer: From the path of a layer, and whether the model's shortcuts pool, to
      its name.
    head: Name of the classifier.
    head_is_convolution: Whether the classifier is a 1x1 convolution there.
  """

  title: str
  layer: Callable[[Path, bool], str]
  head: str
  head_is_convolution: bool = False

  def name(self, path: Path, model: ResNet) -> str:
    """Returns the name of a layer of `model`."""
    if path == ("head",):
      return self.head
    return self.layer(path, model.shortcut == "pooled")


def _block(path: Path) -> tuple[int, int] | None:
  """Returns stage and number of the block in which a layer is, from 0."""
  match = re.fullmatch(r"stage(\d+)_block(\d+)", path[0])
  return (int(match[1]) - 1, int(match[2]) - 1) if match else None


# The stems of torchvision and timm, plain and deep (conv1 is a Sequential).
_STEM = {
  "conv": "conv1",
  "bn": "bn1",
  "conv1": "conv1.0",
  "bn1": "conv1.1",
  "conv2": "conv1.3",
  "bn2": "conv1.4",
  "conv3": "conv1.6",
  "bn3": "bn1",
  "pool_conv": "maxpool.0",
  "pool_bn": "maxpool.1",
}


def _torchvision(path: Path, pooled: bool, shortcut: str = "downsample") -> str:
  if path[0] == "stem":
    return _STEM[path[1]]
  if (place := _block(path)) is None:
    return ".".join(path)
  stage, block = place
  rest = ".".join(path[1:])
  if path[1] == "shortcut":
    # ResNet-D's first entry is the pool.
    number = ("conv", "bn").index(path[2]) + pooled
    rest = f"{shortcut}.{number}"
  return f"layer{stage + 1}.{block}.{rest}"


def _cifar(path: Path, pooled: bool) -> str:
  return _torchvision(path, pooled, shortcut="shortcut")


def _timm_v2(path: Path, pooled: bool) -> str:
  del pooled
  rest = ".".join(path[1:]).replace("bn", "norm")
  rest = rest.replace("shortcut", "downsample")
  if (place := _block(path)) is not None:
    return f"stages.{place[0]}.blocks.{place[1]}.{rest}"
  return f"stem.{rest}" if path[0] == "stem" else path[0].replace("bn", "norm")


def _transformers(path: Path, pooled: bool) -> str:
  del pooled
  kind = "convolution" if "conv" in path[-1] else "normalization"
  if (place := _block(path)) is None:
    return f"resnet.embedder.embedder.{kind}"
  if path[1] == "shortcut":
    layer = "shortcut"
  else:
    layer = f"layer.{int(path[1][-1]) - 1}"
  return f"resnet.encoder.stages.{place[0]}.layers.{place[1]}.{layer}.{kind}"


CONVENTIONS = {
  "torchvision": Convention("torchvision and timm", _torchvision, "fc"),
  "timm_v2": Convention(
    "timm's pre-activation nets", _timm_v2, "head.fc", head_is_convolution=True
  ),
  "transformers": Convention(
    "Hugging Face transformers", _transformers, "classifier.1"
  ),
  "cifar": Convention("the CIFAR nets of akamaster", _cifar, "linear"),
}


def recognise(names: Iterable[str]) -> Convention:
  """Returns the convention that the names of a file follow."""
  names = set(names)
  if any(name.startswith("resnet.embedder.") for name in names):
    return CONVENTIONS["transformers"]
  if any(name.startswith("stages.") for name in names):
    return CONVENTIONS["timm_v2"]
  if any(re.match(r"linear\.|layer1\.0\.shortcut\.", name) for name in names):
    return CONVENTIONS["cifar"]
  return CONVENTIONS["torchvision"]


def usual(model: ResNet) -> Convention:
  """Returns the convention in which the weights of a network are published."""
  return CONVENTIONS["timm_v2" if model.pre_activation else "torchvision"]
