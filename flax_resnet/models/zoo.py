"""Networks by name."""

from collections.abc import Callable
import difflib
import functools
import inspect
from typing import Any

from flax_resnet.models.blocks import BasicBlock, BottleneckBlock
from flax_resnet.models.preact import PreActBasicBlock, PreActBottleneckBlock
from flax_resnet.models.resnet import ResNet

# He et al. 2015, Table 1; 200 as in He et al. 2016; 26 as in timm.
_STAGE_SIZES = {
  18: (2, 2, 2, 2),
  26: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


def _imagenet(depth: int, **fields: Any) -> Callable[..., ResNet]:
  """A net for images of 224 pixels; `block` as the paper has it by default."""
  fields = {"block": _block(depth), "stage_sizes": _STAGE_SIZES[depth]} | fields
  return functools.partial(ResNet, **fields)


def _block(depth: int) -> Any:
  return BasicBlock if depth in (18, 34) else BottleneckBlock


def _cifar(depth: int, block: Any = BasicBlock, **fields: Any):
  """The nets of section 4.2: 6n + 2 layers, or 9n + 2 with bottlenecks."""
  convolutions = 2 if block in (BasicBlock, PreActBasicBlock) else 3
  return functools.partial(
    ResNet,
    block=block,
    stage_sizes=((depth - 2) // (3 * convolutions),) * 3,
    stem="cifar",
    num_classes=10,
    **{"stage_features": (16, 32, 64)} | fields,
  )


def _wide(depth: int, factor: int) -> Callable[..., ResNet]:
  """Zagoruyko & Komodakis 2016, Table 1: 6n + 4 layers, of which 3 are 1x1."""
  return _cifar(
    depth - 2,
    PreActBasicBlock,
    stem_features=16,
    stage_features=(16 * factor, 32 * factor, 64 * factor),
  )


def _squeezing(
  depth: int, ratio: float, **fields: Any
) -> Callable[..., ResNet]:
  block = functools.partial(_block(depth), squeeze_ratio=ratio)
  return _imagenet(depth, block=block, **fields)


def _bottleneck(**fields: Any) -> Callable[..., Any]:
  return functools.partial(BottleneckBlock, **fields)


# The networks by the paper that they are from.
_FAMILIES: dict[str, dict[str, Callable[..., ResNet]]] = {
  "He et al. 2015, arXiv:1512.03385": {
    # With the stride in the 3x3: v1.5, as fb.resnet.torch and torchvision.
    **{f"resnet{d}": _imagenet(d) for d in (18, 34, 50, 101, 152)},
    # To the letter.
    **{
      f"resnet{d}_v1": _imagenet(d, block=_bottleneck(stride_in_1x1=True))
      for d in (50, 101, 152)
    },
    # Section 4.2: option A.
    **{
      f"cifar_resnet{d}": _cifar(d, shortcut="identity")
      for d in (20, 32, 44, 56, 110, 1202)
    },
    **{f"cifar_plain{d}": _cifar(d, shortcut="none") for d in (20, 32, 44, 56)},
  },
  "after He et al. 2015, arXiv:1512.03385": {
    # Of the depth of the pre-activation net of He et al. 2016.
    "resnet200": _imagenet(200),
    "cifar_resnet8": _cifar(8, shortcut="identity"),
    # The ImageNet widths behind a 3x3 stem.
    **{
      f"cifar_resnet{d}": _imagenet(d, stem="cifar", num_classes=10)
      for d in (18, 34, 50)
    },
  },
  "He et al. 2016, arXiv:1603.05027": {
    # With the stride in the 3x3, as timm.
    **{
      f"resnetv2_{d}": _imagenet(d, block=PreActBottleneckBlock)
      for d in (50, 101, 152, 200)
    },
    # Tables 3 and 4, with the stride where the paper's code has it.
    "cifar_preact_resnet110": _cifar(110, PreActBasicBlock),
    **{
      f"cifar_preact_resnet{d}": _cifar(
        d, functools.partial(PreActBottleneckBlock, stride_in_1x1=True)
      )
      for d in (164, 1001)
    },
  },
  "Zagoruyko & Komodakis 2016, arXiv:1605.07146": {
    **{
      f"wide_resnet{d}_2": _imagenet(d, block=_bottleneck(width_factor=2))
      for d in (50, 101)
    },
    "wrn_28_10": _wide(28, 10),
    "wrn_40_4": _wide(40, 4),
  },
  "Xie et al. 2017, arXiv:1611.05431": {
    # 64x4d is torchvision's.
    f"resnext{d}_{groups}x{width}d": _imagenet(
      d, block=_bottleneck(groups=groups, width_factor=groups * width // 64)
    )
    for d, groups, width in ((50, 32, 4), (101, 32, 8), (101, 64, 4))
  },
  "He et al. 2018 (ResNet-D), arXiv:1812.01187": {
    f"resnet{d}d": _imagenet(d, stem="deep", shortcut="pooled")
    for d in (26, 34, 50, 101, 152)
  },
  "Hu et al. 2018, arXiv:1709.01507": {
    f"seresnet{d}": _squeezing(d, 1 / 16) for d in (18, 50, 101, 152)
  },
  "Bello et al. 2021, arXiv:2103.07579": {
    f"resnetrs{d}": _squeezing(
      d, 1 / 4, stem="deep_convolutional", shortcut="pooled"
    )
    for d in (50, 101, 152, 200)
  },
}
_MODELS = {
  name: make for family in _FAMILIES.values() for name, make in family.items()
}


def list_models() -> list[str]:
  """Returns the names that `create_model` knows."""
  return list(_MODELS)


def source_of(name: str) -> str:
  """Returns the paper that a network is from."""
  return next(paper for paper, nets in _FAMILIES.items() if name in nets)


def create_model(name: str, **fields: Any) -> ResNet:
  """Returns the network called `name`.

  Args:
    name: One of `list_models()`.
    **fields: Fields of `ResNet` that shall differ from the named network's:
      `num_classes`, `dtype`, `shortcut`, `norm_group_size`, ...

  Raises:
    ValueError: For an unknown name, or a field's value that cannot be.
    TypeError: For an unknown field.
  """
  if name not in _MODELS:
    raise ValueError(_unknown("model", name, list_models()))
  known = list(inspect.signature(create_model).parameters)
  for field in fields:
    if field not in known:
      raise TypeError(_unknown("field of a model", field, known[1:]))
  return _MODELS[name](**fields)


def _unknown(what: str, name: str, known: list[str]) -> str:
  close = difflib.get_close_matches(name, known, n=1)
  hint = f"did you mean {close[0]!r}?" if close else "use one of"
  return f"unknown {what} {name!r}: {hint}" + (
    "" if close else f" {', '.join(known)}"
  )


# help(create_model), and whoever checks arguments against the signature, see
# the fields by name. `parent` and `name` belong to linen; the defaults are the
# named network's.
create_model.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess] - set for help()
  [
    inspect.Parameter(
      "name", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str
    ),
    *(
      p.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=...)
      for p in inspect.signature(ResNet).parameters.values()
      if p.name not in ("parent", "name")
    ),
  ],
  return_annotation=ResNet,
)
