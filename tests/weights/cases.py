"""The networks that are compared with PyTorch's, and numbers to fill them with.

Each is a small member of its row of the family: its blocks, stem and shortcuts
at full width, fewer of them.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import importlib.util
import pathlib
import zlib

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models.variables import variable_shapes

REFERENCES = pathlib.Path(__file__).with_name("references.npz")
SIZES = (1, 1, 2, 1)


@dataclasses.dataclass(frozen=True)
class Case:
  """A network of ours and the same one of PyTorch.

  Attributes:
    model: name of our network.
    theirs: arguments of `torch_side.build`.
    names: key of `names.CONVENTIONS`, the owner of the names.
    fields: fields of our network, besides `num_classes=10`.
    sides: sides of the images in pixels: an even and an odd one.
    wider: pixels by which the images are wider than high.
    dtype: dtype of the comparison: "float64" where the rounding of float32
      alone, through so many layers, is above the limit.
  """

  model: str
  theirs: tuple
  names: str = "torchvision"
  fields: tuple = (("stage_sizes", SIZES),)
  sides: tuple[int, int] = (64, 75)
  wider: int = 4
  dtype: str = "float32"

  def network(self) -> fr.ResNet:
    fields = {"dtype": self.dtype, "param_dtype": self.dtype}
    return fr.create_model(
      self.model, num_classes=10, **fields | dict(self.fields)
    )

  def skip_without_packages(self) -> None:
    """Skips the test unless what computes the comparison is installed."""
    packages = {"cifar": ["torch"], "preact": ["torch"]}.get(
      self.theirs[0], ["torch", "torchvision", self.theirs[0]]
    )
    for package in packages:
      if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")

  @property
  def sizes(self) -> list[int]:
    """Blocks of each stage."""
    return list(self.network().stage_sizes)


def _torchvision(model, block, fields=(), **theirs):
  fields = (("stage_sizes", SIZES), *fields)
  return Case(model, ("torchvision", block, theirs), fields=fields)


def _timm(model, fields=(), names="torchvision", **theirs):
  fields = (("stage_sizes", SIZES), *fields)
  return Case(model, ("timm", model, theirs), names, fields)


def _transformers(model, layer_type, **theirs):
  return Case(model, ("transformers", layer_type, theirs), "transformers")


def _cifar(model, *theirs, names="cifar", sizes=(1, 2, 1)):
  return Case(model, theirs, names, (("stage_sizes", sizes),), sides=(16, 19))


def whole(model: str, names: str = "torchvision", **options) -> Case:
  """Returns a case of a network of timm at full length."""
  return Case(model, ("timm", model, {}), names, fields=(), **options)


def _halved(model):
  """Of sizes that timm's 2x2 average pools halve without a remainder."""
  return dataclasses.replace(_timm(model), sides=(64, 65), wider=32)


_DILATED = (("output_stride", 8),)
CASES = {
  "resnet18": _torchvision("resnet18", "BasicBlock"),
  "resnet50": _torchvision("resnet50", "Bottleneck"),
  "dilated": _torchvision(
    "resnet50",
    "Bottleneck",
    _DILATED,
    replace_stride_with_dilation=[False, True, True],
  ),
  "wide_resnet50_2": _torchvision(
    "wide_resnet50_2", "Bottleneck", width_per_group=128
  ),
  "resnext50_32x4d": _torchvision(
    "resnext50_32x4d", "Bottleneck", groups=32, width_per_group=4
  ),
  "resnet34d": _timm("resnet34d"),
  "resnet50d": _timm("resnet50d"),
  "resnet50d_dilated": _timm("resnet50d", _DILATED, output_stride=8),
  "seresnet18": _timm("seresnet18"),
  "seresnet50": _timm("seresnet50"),
  "resnetrs50": _timm("resnetrs50"),
  "resnetv2_50": _timm("resnetv2_50", names="timm_v2"),
  # A member of each variant of timm; those of fixed widths at full length.
  "resnet10t": _timm("resnet10t"),
  "resnet50s": _timm("resnet50s"),
  "test_resnet": whole("test_resnet"),
  "seresnext26t_32x4d": _timm("seresnext26t_32x4d"),
  "senet154": _timm("senet154"),
  "senet154_dilated": _timm("senet154", _DILATED, output_stride=8),
  "ecaresnetlight": _timm("ecaresnetlight"),
  "resnetaa50": _halved("resnetaa50"),
  "resnetaa34d": _halved("resnetaa34d"),
  "resnetblur18": _timm("resnetblur18"),
  "resnetblur50d": _timm("resnetblur50d", _DILATED, output_stride=8),
  "resnet50_gn": _timm("resnet50_gn"),
  "resnetv2_18d": _timm("resnetv2_18d", names="timm_v2"),
  "resnetv2_50d_gn": _timm("resnetv2_50d_gn", names="timm_v2"),
  "resnetv2_50d_evos": _timm("resnetv2_50d_evos", names="timm_v2"),
  "resnetv2_50d_frn": _timm("resnetv2_50d_frn", names="timm_v2"),
  "resnetv2_50x1_bit": whole("resnetv2_50x1_bit", names="timm_v2"),
  "resnest14d": _timm("resnest14d"),
  "resnest50d_4s2x40d": _timm("resnest50d_4s2x40d"),
  "resnest50d_1s4x24d": _timm("resnest50d_1s4x24d", _DILATED, output_stride=8),
  "transformers": _transformers("resnet50", "bottleneck"),
  "resnet50_v1": _transformers(
    "resnet50_v1", "bottleneck", downsample_in_bottleneck=True
  ),
  "transformers18": _transformers("resnet18", "basic"),
  "cifar_resnet20": _cifar("cifar_resnet20", "cifar", (16, 32, 64), "A"),
  "cifar_plain20": _cifar("cifar_plain20", "cifar", (16, 32, 64), "none"),
  "cifar_resnet18": _cifar(
    "cifar_resnet18", "cifar", (64, 128, 256, 512), "B", sizes=SIZES
  ),
  **{
    model: _cifar(model, "preact", widths, 16, bottleneck, names="timm_v2")
    for model, widths, bottleneck in (
      ("cifar_preact_resnet110", (16, 32, 64), False),
      ("cifar_preact_resnet164", (16, 32, 64), True),
      ("wrn_40_4", (64, 128, 256), False),
    )
  },
}

# The nets that are trained in both frameworks, and the dtypes. In float32 the
# full ResNet-50, random as it is here, differs by more than 1e-4 after a few
# steps: rounding moves units across ReLU's kink, and 50 layers amplify it. In
# float64 it does not.
TRAINED = {
  "cifar_resnet20 of four blocks": (CASES["cifar_resnet20"], ("float64",)),
  "resnet50 of five blocks": (CASES["resnet50"], ("float32",)),
  "cifar_resnet18": (
    dataclasses.replace(CASES["cifar_resnet18"], fields=()),
    ("float64",),
  ),
  "resnet50": (dataclasses.replace(CASES["resnet50"], fields=()), ("float64",)),
}
RATE = 1e-4
STEPS = 10
BATCH = 8
DECAY = 1e-3


def batches(side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the images [8, side, side, 3] and labels of the ten steps."""
  rng = np.random.default_rng(7)
  for _ in range(STEPS):
    yield (
      rng.normal(size=(BATCH, side, side, 3)),
      rng.integers(0, 10, BATCH),
    )


def as_vector(state_dict: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns all numbers of a state_dict, in the order of its names."""
  return np.concatenate(
    [
      np.ravel(value).astype(np.float64)
      for key, value in sorted(state_dict.items())
      if not key.endswith("num_batches_tracked")
    ]
  )


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Returns a state_dict of random numbers, each array seeded by its name.

  Nothing is 0 or 1, which would hide wrong paddings or swapped arrays.
  """
  arrays = {}
  for name, shape in shapes.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
      arrays[name] = np.zeros((), np.int64)
    elif len(shape) > 1:
      scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
      arrays[name] = scale * rng.standard_normal(shape, np.float32)
    elif name.endswith(("weight", "running_var")):
      arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    else:
      arrays[name] = rng.normal(0, 0.3, shape).astype(np.float32)
  return arrays


def images(side: int, wider: int = 4) -> np.ndarray:
  """Returns images [3, side, side + wider, 3]: height is not width."""
  rng = np.random.default_rng(side)
  return rng.normal(size=(3, side, side + wider, 3)).astype(np.float32)


def our_shapes(case: Case) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the state_dict that `to_torch` makes."""
  model = dataclasses.replace(case, dtype="float32").network()
  variables = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model)
  )
  state_dict = fr.to_torch(variables, model, names=case.names)
  return {name: array.shape for name, array in state_dict.items()}


def our_logits(
  case: Case, state_dict: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the logits of `images` of both sides: "logits/64", "logits/75"."""
  model = case.network()
  variables = fr.from_torch(state_dict, model)
  evaluate = jax.jit(functools.partial(model.apply, train=False))
  return {
    f"logits/{side}": np.asarray(evaluate(variables, images(side, case.wider)))
    for side in case.sides
  }


def our_outputs(
  case: Case, state_dict: Mapping[str, np.ndarray], train: bool = True
) -> dict[str, np.ndarray]:
  """Returns all that is compared with PyTorch.

  "logits/64", "stage1/64", ... of images of both sides; with `train`, of a step
  of training on those of the even side "train", its logits, and
  "....running_mean", "....running_var".
  """
  with jax.enable_x64(case.dtype == "float64"):
    return _our_outputs(case, state_dict, train)


def _our_outputs(case, state_dict, training):
  model = case.network()
  variables = fr.from_torch(state_dict, model)

  # Numbers closed over would be compressed with the program that is kept.
  @jax.jit
  def evaluate(variables, x):
    maps = model.apply(variables, x, train=False, method="features")
    return maps | {"logits": model.apply(variables, x, train=False)}

  @jax.jit
  def train(variables, x):
    return model.apply(variables, x, train=True, mutable=["batch_stats"])

  outputs = {}
  for side in case.sides:
    for name, value in evaluate(variables, images(side, case.wider)).items():
      value = np.asarray(value)
      if value.ndim == 4:
        value = value.transpose(0, 3, 1, 2)
      outputs[f"{name}/{side}"] = value
  if not training:
    return outputs
  logits, updates = train(variables, images(case.sides[0], case.wider))
  outputs["train"] = np.asarray(logits)
  after = fr.to_torch(variables | updates, model, names=case.names)
  for name, value in after.items():
    if name.endswith(("running_mean", "running_var")):
      outputs[name] = value
  return outputs


def thinned(array: np.ndarray, most: int) -> np.ndarray:
  """Returns at most `most` numbers of an array, spread evenly over it."""
  flat = array.reshape(-1)
  # An odd stride visits all channels and positions.
  return flat[:: max(1, len(flat) // most) | 1][:most]
