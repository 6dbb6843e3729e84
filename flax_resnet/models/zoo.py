"""Networks by name."""

from collections.abc import Callable
import difflib
import functools
import inspect
from typing import Any

from flax_resnet.models.blocks import (
  BasicBlock,
  BottleneckBlock,
)
from flax_resnet.models.resnet import ResNet

# He et al. 2015, Table 1; 200 as in fb.resnet.torch.
_IMAGENET = {
  "resnet18": (BasicBlock, (2, 2, 2, 2)),
  "resnet34": (BasicBlock, (3, 4, 6, 3)),
  "resnet50": (BottleneckBlock, (3, 4, 6, 3)),
  "resnet101": (BottleneckBlock, (3, 4, 23, 3)),
  "resnet152": (BottleneckBlock, (3, 8, 36, 3)),
  "resnet200": (BottleneckBlock, (3, 24, 36, 3)),
}


def _cifar(depth: int, shortcut: str) -> Callable[..., ResNet]:
  """The nets of section 4.2: 6n + 2 layers, option A or no shortcut."""
  return functools.partial(
    ResNet,
    block=BasicBlock,
    stage_sizes=((depth - 2) // 6,) * 3,
    stage_features=(16, 32, 64),
    stem="cifar",
    num_classes=10,
    shortcut=shortcut,
  )


_MODELS: dict[str, Callable[..., ResNet]] = {
  **{
    name: functools.partial(ResNet, block=block, stage_sizes=sizes)
    for name, (block, sizes) in _IMAGENET.items()
  },
  **{
    f"cifar_resnet{depth}": _cifar(depth, "identity")
    for depth in (8, 20, 32, 44, 56, 110, 1202)
  },
  **{
    f"cifar_plain{depth}": _cifar(depth, "none") for depth in (20, 32, 44, 56)
  },
}


def list_models() -> list[str]:
  """Returns the names that `create_model` knows."""
  return list(_MODELS)


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
