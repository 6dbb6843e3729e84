"""Weights of the Hugging Face hub: which network, which preprocessing."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any

from etils import epy

from flax_resnet import storage
from flax_resnet.errors import WeightsError
from flax_resnet.models import list_models
from flax_resnet.weights.files import Source
from flax_resnet.weights.preprocessing import Interpolation, Preprocessing

with epy.lazy_imports():  # Slow to import, and only the hub needs it.
  import huggingface_hub
  from huggingface_hub import errors as hub_errors

PREFIX = "hf-hub:"
# Both become parts of paths in the cache. The hub's client checks the name of a
# repository by itself; a revision it writes to refs/REVISION as it is.
_PART = r"(?!\.\.?(/|$))[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
_REVISION = re.compile(rf"({_PART}(/{_PART}){{0,8}})?", re.ASCII)
_FILES = ("model.safetensors", "pytorch_model.bin")
# (layer_type, depths) of transformers' `ResNetConfig`.
_TRANSFORMERS: dict[Any, str] = {
  ("basic", (2, 2, 2, 2)): "resnet18",
  ("basic", (3, 4, 6, 3)): "resnet34",
  ("bottleneck", (3, 4, 6, 3)): "resnet50",
  ("bottleneck", (3, 4, 23, 3)): "resnet101",
  ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
# The numbers of Pillow's filters.
_RESAMPLING: dict[Any, Interpolation] = {
  0: "nearest",
  1: "lanczos",
  2: "bilinear",
  3: "bicubic",
}


def fetch(name: str) -> Source:
  """Returns a hub repository, from the cache if it is there.

  Args:
    name: "hf-hub:owner/repository", with "@revision" if so wanted. The cache
      and `HF_HUB_OFFLINE` are those of huggingface_hub.

  Raises:
    WeightsError: if there is no such repository, or it cannot be reached.
  """
  repository, _, revision = name.removeprefix(PREFIX).partition("@")
  if not (_REPOSITORY.fullmatch(repository) and _REVISION.fullmatch(revision)):
    raise WeightsError(
      f"{name!r} cannot be read: use {PREFIX}owner/repository, with @revision "
      "if so wanted"
    )
  config = _read_json(repository, revision, "config.json")
  processor = {}
  if "pretrained_cfg" not in config:  # timm's has no other file: do not ask.
    processor = _read_json(repository, revision, "preprocessor_config.json")
  paths = (_download(repository, revision, file) for file in _FILES)
  if (path := next(filter(None, paths), None)) is None:
    raise WeightsError(f"{name} has no {' and no '.join(_FILES)}")
  try:
    return Source(
      path,
      _model(config),
      preprocessing=_preprocessing(config, processor),
      class_names=_class_names(config),
    )
  # Whatever the JSON of others may lead to.
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
  ) as error:
    raise WeightsError(
      f"{name} has a config that cannot be: {error!r:.200}"
    ) from error


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  names = config.get("label_names")
  if not names:
    by_number = config.get("id2label", {}).items()
    numbered = sorted((int(number), name) for number, name in by_number)
    names = [name for _, name in numbered]
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError("the names of the classes are no list of names")
  return tuple(names)


def _model(config: Mapping[str, Any]) -> str | None:
  if config.get("model_type") == "resnet":
    kind = (config.get("layer_type"), tuple(config.get("depths", ())))
    name = _TRANSFORMERS.get(kind)
    strided_1x1 = config.get("downsample_in_bottleneck")
    return f"{name}_v1" if name and strided_1x1 else name
  name = config.get("architecture")
  return name if name in list_models() else None


def _preprocessing(
  config: Mapping[str, Any], processor: Mapping[str, Any]
) -> Preprocessing | None:
  if timm := config.get("pretrained_cfg"):
    return Preprocessing(
      image_size=timm["input_size"][-1],
      crop_fraction=timm["crop_pct"],
      # "random" was trained with bilinear and bicubic in turn.
      interpolation=timm["interpolation"].replace("random", "bilinear"),
      mean=tuple(timm["mean"]),
      std=tuple(timm["std"]),
    )
  if not processor:
    return None
  size = processor.get("size", 224)
  if isinstance(size, Mapping):
    size = size.get("shortest_edge") or size.get("height") or 224
  return Preprocessing(
    image_size=size,
    crop_fraction=processor.get("crop_pct") or 1.0,
    interpolation=_RESAMPLING.get(processor.get("resample", 2), "bilinear"),
    mean=tuple(processor["image_mean"]),
    std=tuple(processor["image_std"]),
  )


def _read_json(repository: str, revision: str, file: str) -> dict[str, Any]:
  """Returns the object in a file of a repository; {} if it has no such file."""
  path = _download(repository, revision, file)
  try:
    return storage.read_json(path) if path else {}
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"{file} of {PREFIX}{repository} is not JSON ({error})"
    ) from error


def _download(repository: str, revision: str, file: str) -> pathlib.Path | None:
  """Returns the path of a file of a repository; None if it has no such file."""
  try:
    return pathlib.Path(
      huggingface_hub.hf_hub_download(
        repository, file, revision=revision or None
      )
    )
  except hub_errors.LocalEntryNotFoundError as error:
    raise WeightsError(
      f"{PREFIX}{repository} is not in the local cache, and the hub cannot be "
      "reached: connect, or give a weight file"
    ) from error
  except hub_errors.EntryNotFoundError:
    return None
  except (
    hub_errors.HfHubHTTPError,
    hub_errors.HFValidationError,
    hub_errors.OfflineModeIsEnabled,
    OSError,
  ) as error:
    reason = " ".join(str(error).split())[:200]
    raise WeightsError(
      f"{PREFIX}{repository} cannot be read: {reason}"
    ) from error
