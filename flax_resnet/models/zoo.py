"""Networks by name."""

import fnmatch
import functools
from typing import Any

from flax_resnet import schema
from flax_resnet.errors import suggestion
from flax_resnet.models import tags
from flax_resnet.models.blocks import BasicBlock, BottleneckBlock
from flax_resnet.models.preact import PreActBasicBlock, PreActBottleneckBlock
from flax_resnet.models.resnet import ResNet


def _basic(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  return {"block": BasicBlock, "stage_sizes": stage_sizes, **fields}


def _bottleneck(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  """Fields of `BottleneckBlock` are those of the block, others the net's."""
  block_fields = {"stride_in_1x1", "width_factor", "groups", "squeeze_ratio"}
  options = {key: fields.pop(key) for key in block_fields & fields.keys()}
  block = functools.partial(BottleneckBlock, **options)
  return {
    "block": block if options else BottleneckBlock,
    "stage_sizes": stage_sizes,
    **fields,
  }


def _cifar(blocks_per_stage: int, block: Any = BasicBlock, **fields: Any):
  """Section 4.2: 6n + 2 layers for n basic blocks, 9n + 2 for bottlenecks."""
  return {
    "block": block,
    "stage_sizes": (blocks_per_stage,) * 3,
    "stage_features": (16, 32, 64),
    "stem": "cifar",
    "num_classes": 10,
    **fields,
  }


# The paper's code has the stride in the first 1x1; timm's nets in the 3x3.
_PREACT_V1 = functools.partial(PreActBottleneckBlock, stride_in_1x1=True)
_SE18 = functools.partial(BasicBlock, squeeze_ratio=1 / 16)
_RESNET_D: dict[str, Any] = {"stem": "deep", "shortcut": "pooled"}
_RESNET_RS: dict[str, Any] = {
  "stem": "deep_convolutional",
  "shortcut": "pooled",
  "squeeze_ratio": 1 / 4,
}

# The fields of `ResNet` by name, and the names by the paper they are from.
_FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
  "He et al. 2015, arXiv:1512.03385": {
    # Table 1, with the stride in the 3x3: v1.5, as fb.resnet.torch and
    # torchvision.
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _bottleneck(3, 4, 6, 3),
    "resnet101": _bottleneck(3, 4, 23, 3),
    "resnet152": _bottleneck(3, 8, 36, 3),
    # To the letter.
    "resnet50_v1": _bottleneck(3, 4, 6, 3, stride_in_1x1=True),
    "resnet101_v1": _bottleneck(3, 4, 23, 3, stride_in_1x1=True),
    "resnet152_v1": _bottleneck(3, 8, 36, 3, stride_in_1x1=True),
    # Section 4.2, with the shortcuts of option A.
    "cifar_resnet20": _cifar(3, shortcut="identity"),
    "cifar_resnet32": _cifar(5, shortcut="identity"),
    "cifar_resnet44": _cifar(7, shortcut="identity"),
    "cifar_resnet56": _cifar(9, shortcut="identity"),
    "cifar_resnet110": _cifar(18, shortcut="identity"),
    "cifar_resnet1202": _cifar(200, shortcut="identity"),
    "cifar_plain20": _cifar(3, shortcut="none"),
    "cifar_plain32": _cifar(5, shortcut="none"),
    "cifar_plain44": _cifar(7, shortcut="none"),
    "cifar_plain56": _cifar(9, shortcut="none"),
  },
  "after He et al. 2015, arXiv:1512.03385": {
    # As deep as the pre-activation net of He et al. 2016.
    "resnet200": _bottleneck(3, 24, 36, 3),
    "cifar_resnet8": _cifar(1, shortcut="identity"),
    # The ImageNet widths behind a 3x3 stem.
    "cifar_resnet18": _basic(2, 2, 2, 2, stem="cifar", num_classes=10),
    "cifar_resnet34": _basic(3, 4, 6, 3, stem="cifar", num_classes=10),
    "cifar_resnet50": _bottleneck(3, 4, 6, 3, stem="cifar", num_classes=10),
  },
  "He et al. 2016, arXiv:1603.05027": {
    "resnetv2_50": _bottleneck(3, 4, 6, 3, block=PreActBottleneckBlock),
    "resnetv2_101": _bottleneck(3, 4, 23, 3, block=PreActBottleneckBlock),
    "resnetv2_152": _bottleneck(3, 8, 36, 3, block=PreActBottleneckBlock),
    "resnetv2_200": _bottleneck(3, 24, 36, 3, block=PreActBottleneckBlock),
    # Tables 3 and 4.
    "cifar_preact_resnet110": _cifar(18, PreActBasicBlock),
    "cifar_preact_resnet164": _cifar(18, _PREACT_V1),
    "cifar_preact_resnet1001": _cifar(111, _PREACT_V1),
  },
  "Zagoruyko & Komodakis 2016, arXiv:1605.07146": {
    "wide_resnet50_2": _bottleneck(3, 4, 6, 3, width_factor=2),
    "wide_resnet101_2": _bottleneck(3, 4, 23, 3, width_factor=2),
    # Table 1: 6n + 4 layers, of which 3 are 1x1.
    "wrn_28_10": _cifar(
      4, PreActBasicBlock, stem_features=16, stage_features=(160, 320, 640)
    ),
    "wrn_40_4": _cifar(
      6, PreActBasicBlock, stem_features=16, stage_features=(64, 128, 256)
    ),
  },
  "Xie et al. 2017, arXiv:1611.05431": {
    "resnext50_32x4d": _bottleneck(3, 4, 6, 3, groups=32, width_factor=2),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, groups=32, width_factor=4),
    # torchvision's.
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, groups=64, width_factor=4),
  },
  "He et al. 2018 (ResNet-D), arXiv:1812.01187": {
    "resnet26d": _bottleneck(2, 2, 2, 2, **_RESNET_D),
    "resnet34d": _basic(3, 4, 6, 3, **_RESNET_D),
    "resnet50d": _bottleneck(3, 4, 6, 3, **_RESNET_D),
    "resnet101d": _bottleneck(3, 4, 23, 3, **_RESNET_D),
    "resnet152d": _bottleneck(3, 8, 36, 3, **_RESNET_D),
  },
  "Hu et al. 2018, arXiv:1709.01507": {
    "seresnet18": _basic(2, 2, 2, 2, block=_SE18),
    "seresnet50": _bottleneck(3, 4, 6, 3, squeeze_ratio=1 / 16),
    "seresnet101": _bottleneck(3, 4, 23, 3, squeeze_ratio=1 / 16),
    "seresnet152": _bottleneck(3, 8, 36, 3, squeeze_ratio=1 / 16),
  },
  "Bello et al. 2021, arXiv:2103.07579": {
    "resnetrs50": _bottleneck(3, 4, 6, 3, **_RESNET_RS),
    "resnetrs101": _bottleneck(3, 4, 23, 3, **_RESNET_RS),
    "resnetrs152": _bottleneck(3, 8, 36, 3, **_RESNET_RS),
    "resnetrs200": _bottleneck(3, 24, 36, 3, **_RESNET_RS),
  },
}
_MODELS = {
  name: fields for nets in _FAMILIES.values() for name, fields in nets.items()
}


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
  """Returns the names that `create_model` knows.

  Args:
    pattern: pattern of the names, or of those before a tag, with *, ? and
      [...]: "*50*"; default "*" for all.
    pretrained: whether to return the tags of published weights instead, as
      `from_pretrained` takes them: "resnet50.a1_in1k".
  """
  names = {name: name for name in _MODELS}
  if pretrained:
    published = tags.published().values()
    names = {tag.name: tag.model for tag in published if tag.model in _MODELS}
  return [
    name
    for name, model in names.items()
    if any(fnmatch.fnmatchcase(each, pattern) for each in (name, model))
  ]


def source_of(name: str) -> str:
  """Returns the paper that a network is from."""
  return next(paper for paper, nets in _FAMILIES.items() if name in nets)


def create_model(name: str, **fields: Any) -> ResNet:
  """Returns the network called `name`.

  Args:
    name: one of `list_models()`, or of `list_models(pretrained=True)` for the
      network of these weights, with as many classes.
    **fields: fields of `ResNet` that differ from those of the named network:
      `num_classes`, `dtype`, `shortcut`, `norm_group_size`, ...

  Raises:
    ValueError: for an unknown name, or a value that a field does not take.
    TypeError: for an unknown field.
  """
  model = str(name).partition(".")[0]
  if model not in _MODELS:
    raise ValueError(
      f"unknown model {name!r}: {suggestion(str(name), list_models())}"
    )
  if "pretrained" in fields:
    raise ValueError(
      f"create_model gives {name} without weights: use from_pretrained"
      f'("{name}") for the network and its weights'
    )
  if name != model:
    fields = {"num_classes": tags.find(name).num_classes, **fields}
  known = schema.parameters_of(ResNet)
  for field in fields:
    if field not in known:
      raise TypeError(
        f"unknown field of a model {field!r}: {suggestion(field, known)}"
      )
  return ResNet(**(_MODELS[model] | fields))
