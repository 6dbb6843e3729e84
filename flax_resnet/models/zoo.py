"""Networks by name."""

import fnmatch
import functools
from typing import Any

from flax_resnet import schema
from flax_resnet.errors import suggestion
from flax_resnet.models import pruned, tags
from flax_resnet.models.attention import (
  EfficientChannelAttention,
  SqueezeExcite,
)
from flax_resnet.models.blocks import BasicBlock, BottleneckBlock
from flax_resnet.models.preact import PreActBasicBlock, PreActBottleneckBlock
from flax_resnet.models.resnest import ResNeStBlock
from flax_resnet.models.resnet import ResNet

# Fields of a block; all others are those of the network.
_BLOCK_FIELDS = {
  *("stride_in_1x1", "width_factor", "groups", "reduce_first", "attention"),
  *("radix", "pool_first"),
}


def _net(block: Any, sizes: tuple[int, ...], fields: dict[str, Any]):
  options = {k: v for k, v in fields.items() if k in _BLOCK_FIELDS}
  return {
    "block": functools.partial(block, **options) if options else block,
    "stage_sizes": sizes,
    **{k: v for k, v in fields.items() if k not in options},
  }


def _basic(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  return _net(BasicBlock, stage_sizes, fields)


def _bottleneck(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  return _net(BottleneckBlock, stage_sizes, fields)


def _preact(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  return _net(PreActBottleneckBlock, stage_sizes, fields)


def _resnest(*stage_sizes: int, **fields: Any) -> dict[str, Any]:
  return _net(ResNeStBlock, stage_sizes, _RESNET_D | fields)


def _bit(*stage_sizes: int, width_factor: int) -> dict[str, Any]:
  widths = (64, 128, 256, 512)
  return {
    **_net(PreActBottleneckBlock, stage_sizes, {}),
    "stage_features": tuple(width_factor * width for width in widths),
    "stem": "bit",
    "norm": "group",
    "weight_standardization": True,
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
_RESNET_D: dict[str, Any] = {"stem": "deep", "shortcut": "pooled"}
_RESNET_E: dict[str, Any] = {**_RESNET_D, "stem_features": 128}
_RESNET_T: dict[str, Any] = {"stem": "tiered", "shortcut": "pooled"}
_RESNET_C: dict[str, Any] = {"stem": "deep"}
_RESNET_S: dict[str, Any] = {"stem": "deep", "stem_features": 128}
_RESNET_RS: dict[str, Any] = {
  "stem": "deep_convolutional",
  "shortcut": "pooled",
  "attention": functools.partial(SqueezeExcite, ratio=1 / 4),
}
_SE: dict[str, Any] = {"attention": SqueezeExcite}
_ECA: dict[str, Any] = {"attention": EfficientChannelAttention}
_AVERAGE: dict[str, Any] = {"downsampling": "average"}
_BLUR: dict[str, Any] = {"downsampling": "blur"}
_32X4D: dict[str, Any] = {"groups": 32, "width_factor": 2}
_32X8D: dict[str, Any] = {"groups": 32, "width_factor": 4}
_64X4D: dict[str, Any] = {"groups": 64, "width_factor": 4}

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
    "resnet26": _bottleneck(2, 2, 2, 2),
    # As deep as the pre-activation net of He et al. 2016.
    "resnet200": _bottleneck(3, 24, 36, 3),
    "cifar_resnet8": _cifar(1, shortcut="identity"),
    # The ImageNet widths behind a 3x3 stem.
    "cifar_resnet18": _basic(2, 2, 2, 2, stem="cifar", num_classes=10),
    "cifar_resnet34": _basic(3, 4, 6, 3, stem="cifar", num_classes=10),
    "cifar_resnet50": _bottleneck(3, 4, 6, 3, stem="cifar", num_classes=10),
  },
  "He et al. 2016, arXiv:1603.05027": {
    "resnetv2_50": _preact(3, 4, 6, 3),
    "resnetv2_101": _preact(3, 4, 23, 3),
    "resnetv2_152": _preact(3, 8, 36, 3),
    "resnetv2_200": _preact(3, 24, 36, 3),
    # Tables 3 and 4.
    "cifar_preact_resnet110": _cifar(18, PreActBasicBlock),
    "cifar_preact_resnet164": _cifar(18, _PREACT_V1),
    "cifar_preact_resnet1001": _cifar(111, _PREACT_V1),
  },
  "after He et al. 2016, arXiv:1603.05027": {
    # timm's, some of them with the stem and the shortcuts of ResNet-D.
    "resnetv2_18": _basic(2, 2, 2, 2, block=PreActBasicBlock),
    "resnetv2_18d": _basic(2, 2, 2, 2, block=PreActBasicBlock, **_RESNET_D),
    "resnetv2_34": _basic(3, 4, 6, 3, block=PreActBasicBlock),
    "resnetv2_34d": _basic(3, 4, 6, 3, block=PreActBasicBlock, **_RESNET_D),
    "resnetv2_50d": _preact(3, 4, 6, 3, **_RESNET_D),
    "resnetv2_50t": _preact(3, 4, 6, 3, **_RESNET_T),
    "resnetv2_101d": _preact(3, 4, 23, 3, **_RESNET_D),
    "resnetv2_152d": _preact(3, 8, 36, 3, **_RESNET_D),
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
    "resnext50_32x4d": _bottleneck(3, 4, 6, 3, **_32X4D),
    "resnext101_32x4d": _bottleneck(3, 4, 23, 3, **_32X4D),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, **_32X8D),
    # Mahajan et al. 2018, arXiv:1805.00932.
    "resnext101_32x16d": _bottleneck(3, 4, 23, 3, groups=32, width_factor=8),
    "resnext101_32x32d": _bottleneck(3, 4, 23, 3, groups=32, width_factor=16),
    # torchvision's.
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, **_64X4D),
    "resnext50d_32x4d": _bottleneck(3, 4, 6, 3, **_32X4D, **_RESNET_D),
  },
  "He et al. 2018 (ResNet-D), arXiv:1812.01187": {
    "resnet50c": _bottleneck(3, 4, 6, 3, **_RESNET_C),
    "resnet101c": _bottleneck(3, 4, 23, 3, **_RESNET_C),
    "resnet152c": _bottleneck(3, 8, 36, 3, **_RESNET_C),
    "resnet18d": _basic(2, 2, 2, 2, **_RESNET_D),
    "resnet26d": _bottleneck(2, 2, 2, 2, **_RESNET_D),
    "resnet34d": _basic(3, 4, 6, 3, **_RESNET_D),
    "resnet50d": _bottleneck(3, 4, 6, 3, **_RESNET_D),
    "resnet101d": _bottleneck(3, 4, 23, 3, **_RESNET_D),
    "resnet152d": _bottleneck(3, 8, 36, 3, **_RESNET_D),
    "resnet200d": _bottleneck(3, 24, 36, 3, **_RESNET_D),
  },
  "after He et al. 2018 (ResNet-D), arXiv:1812.01187": {
    # GluonCV's.
    "resnet50s": _bottleneck(3, 4, 6, 3, **_RESNET_S),
    "resnet101s": _bottleneck(3, 4, 23, 3, **_RESNET_S),
    "resnet152s": _bottleneck(3, 8, 36, 3, **_RESNET_S),
    # timm's.
    "resnet10t": _basic(1, 1, 1, 1, **_RESNET_T),
    "resnet14t": _bottleneck(1, 1, 1, 1, **_RESNET_T),
    "resnet26t": _bottleneck(2, 2, 2, 2, **_RESNET_T),
    "resnet50t": _bottleneck(3, 4, 6, 3, **_RESNET_T),
    "test_resnet": {
      **_basic(1, 1, 1, 1, **_RESNET_D, stem_features=32),
      "block": (BasicBlock, BasicBlock, BottleneckBlock, BasicBlock),
      "stage_features": (32, 48, 48, 96),
    },
  },
  "Hu et al. 2018, arXiv:1709.01507": {
    "seresnet18": _basic(2, 2, 2, 2, **_SE),
    "seresnet34": _basic(3, 4, 6, 3, **_SE),
    "seresnet50": _bottleneck(3, 4, 6, 3, **_SE),
    "seresnet101": _bottleneck(3, 4, 23, 3, **_SE),
    "seresnet152": _bottleneck(3, 8, 36, 3, **_SE),
    "seresnext50_32x4d": _bottleneck(3, 4, 6, 3, **_SE, **_32X4D),
    "seresnext101_32x4d": _bottleneck(3, 4, 23, 3, **_SE, **_32X4D),
    "seresnext101_32x8d": _bottleneck(3, 4, 23, 3, **_SE, **_32X8D),
    "seresnext101_64x4d": _bottleneck(3, 4, 23, 3, **_SE, **_64X4D),
    "senet154": _bottleneck(
      *(3, 8, 36, 3),
      **(_SE | _64X4D | _RESNET_S),
      reduce_first=2,
      shortcut="projection_3x3",
    ),
    # With the stem and the shortcuts of ResNet-D.
    "seresnet50t": _bottleneck(3, 4, 6, 3, **_SE, **_RESNET_T),
    "seresnet152d": _bottleneck(3, 8, 36, 3, **_SE, **_RESNET_D),
    "seresnet200d": _bottleneck(3, 24, 36, 3, **_SE, **_RESNET_D),
    "seresnet269d": _bottleneck(3, 30, 48, 8, **_SE, **_RESNET_D),
    "seresnext26d_32x4d": _bottleneck(2, 2, 2, 2, **_SE, **_32X4D, **_RESNET_D),
    "seresnext26t_32x4d": _bottleneck(2, 2, 2, 2, **_SE, **_32X4D, **_RESNET_T),
    "seresnext101d_32x8d": _bottleneck(
      3, 4, 23, 3, **_SE, **_32X8D, **_RESNET_D
    ),
  },
  "Wu & He 2018, arXiv:1803.08494": {
    "resnet50_gn": _bottleneck(3, 4, 6, 3, norm="group"),
    "resnetv2_50d_gn": _preact(3, 4, 6, 3, **_RESNET_D, norm="group"),
  },
  "Zhang 2019, arXiv:1904.11486": {
    "resnetaa50": _bottleneck(3, 4, 6, 3, **_AVERAGE),
    "resnetaa34d": _basic(3, 4, 6, 3, **_AVERAGE, **_RESNET_D),
    "resnetaa50d": _bottleneck(3, 4, 6, 3, **_AVERAGE, **_RESNET_D),
    "resnetaa101d": _bottleneck(3, 4, 23, 3, **_AVERAGE, **_RESNET_D),
    "seresnetaa50d": _bottleneck(3, 4, 6, 3, **_SE, **_AVERAGE, **_RESNET_D),
    "seresnextaa101d_32x8d": _bottleneck(
      3, 4, 23, 3, **_SE, **_32X8D, **_AVERAGE, **_RESNET_D
    ),
    "seresnextaa201d_32x8d": _bottleneck(
      3, 24, 36, 4, **_SE, **_32X8D, **_AVERAGE, **_RESNET_E
    ),
    "resnetblur18": _basic(2, 2, 2, 2, **_BLUR),
    "resnetblur50": _bottleneck(3, 4, 6, 3, **_BLUR),
    "resnetblur50d": _bottleneck(3, 4, 6, 3, **_BLUR, **_RESNET_D),
    "resnetblur101d": _bottleneck(3, 4, 23, 3, **_BLUR, **_RESNET_D),
  },
  "Wang et al. 2020 (ECA), arXiv:1910.03151": {
    "ecaresnetlight": _bottleneck(1, 1, 11, 3, **_ECA, shortcut="pooled"),
    "ecaresnet26t": _bottleneck(2, 2, 2, 2, **_ECA, **_RESNET_T),
    "ecaresnet50t": _bottleneck(3, 4, 6, 3, **_ECA, **_RESNET_T),
    "ecaresnet50d": _bottleneck(3, 4, 6, 3, **_ECA, **_RESNET_D),
    "ecaresnet101d": _bottleneck(3, 4, 23, 3, **_ECA, **_RESNET_D),
    "ecaresnet200d": _bottleneck(3, 24, 36, 3, **_ECA, **_RESNET_D),
    "ecaresnet269d": _bottleneck(3, 30, 48, 8, **_ECA, **_RESNET_D),
    "ecaresnext26t_32x4d": _bottleneck(
      2, 2, 2, 2, **_ECA, **_32X4D, **_RESNET_T
    ),
    "ecaresnext50t_32x4d": _bottleneck(
      3, 4, 6, 3, **_ECA, **_32X4D, **_RESNET_T
    ),
  },
  "Aflalo et al. 2020 (pruned), arXiv:2002.08258": {
    "ecaresnet50d_pruned": _bottleneck(
      *(3, 4, 6, 3), **_ECA, **_RESNET_D, block_widths=pruned.ECARESNET50D
    ),
    "ecaresnet101d_pruned": _bottleneck(
      *(3, 4, 23, 3), **_ECA, **_RESNET_D, block_widths=pruned.ECARESNET101D
    ),
  },
  "Kolesnikov et al. 2020 (BiT), arXiv:1912.11370": {
    "resnetv2_50x1_bit": _bit(3, 4, 6, 3, width_factor=1),
    "resnetv2_50x3_bit": _bit(3, 4, 6, 3, width_factor=3),
    "resnetv2_101x1_bit": _bit(3, 4, 23, 3, width_factor=1),
    "resnetv2_101x3_bit": _bit(3, 4, 23, 3, width_factor=3),
    "resnetv2_152x2_bit": _bit(3, 8, 36, 3, width_factor=2),
    "resnetv2_152x4_bit": _bit(3, 8, 36, 3, width_factor=4),
  },
  "Liu et al. 2020 (EvoNorm), arXiv:2004.02967": {
    "resnetv2_50d_evos": _preact(3, 4, 6, 3, **_RESNET_D, norm="evonorm"),
  },
  "Singh & Krishnan 2019, arXiv:1911.09737": {
    "resnetv2_50d_frn": _preact(
      3, 4, 6, 3, **_RESNET_D, norm="filter_response"
    ),
  },
  "Zhang et al. 2020 (ResNeSt), arXiv:2004.08955": {
    "resnest14d": _resnest(1, 1, 1, 1),
    "resnest26d": _resnest(2, 2, 2, 2),
    "resnest50d": _resnest(3, 4, 6, 3),
    "resnest101e": _resnest(3, 4, 23, 3, stem_features=128),
    "resnest200e": _resnest(3, 24, 36, 3, stem_features=128),
    "resnest269e": _resnest(3, 30, 48, 8, stem_features=128),
    # Of its ablation study: radix, cardinality and width.
    "resnest50d_4s2x40d": _resnest(
      *(3, 4, 6, 3), radix=4, groups=2, width_factor=40 / 32, pool_first=True
    ),
    "resnest50d_1s4x24d": _resnest(
      *(3, 4, 6, 3), radix=1, groups=4, width_factor=24 / 16, pool_first=True
    ),
  },
  "Bello et al. 2021, arXiv:2103.07579": {
    "resnetrs50": _bottleneck(3, 4, 6, 3, **_RESNET_RS),
    "resnetrs101": _bottleneck(3, 4, 23, 3, **_RESNET_RS),
    "resnetrs152": _bottleneck(3, 8, 36, 3, **_RESNET_RS),
    "resnetrs200": _bottleneck(3, 24, 36, 3, **_RESNET_RS),
    "resnetrs270": _bottleneck(4, 29, 53, 4, **_RESNET_RS),
    "resnetrs350": _bottleneck(4, 36, 72, 4, **_RESNET_RS),
    "resnetrs420": _bottleneck(4, 44, 87, 4, **_RESNET_RS),
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
    tag = tags.find(name)
    fields = {"num_classes": tag.num_classes, **tag.fields, **fields}
  known = schema.parameters_of(ResNet)
  for field in fields:
    if field not in known:
      raise TypeError(
        f"unknown field of a model {field!r}: {suggestion(field, known)}"
      )
  return ResNet(**(_MODELS[model] | fields))
