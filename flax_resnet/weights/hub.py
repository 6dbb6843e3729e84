"""Weights of the Hugging Face hub: which network, which preprocessing."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from flax_resnet.models import list_models
from flax_resnet.weights.documents import read_object
from flax_resnet.weights.preprocessing import Preprocessing
from flax_resnet.weights.state_dict import WeightsError

PREFIX = "hf-hub:"
# Both become parts of paths in the cache. The hub's client checks the name of a
# repository by itself; a revision it writes to refs/REVISION as it is.
_PART = r"(?!\.\.?(/|$))[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
_REVISION = re.compile(rf"({_PART}(/{_PART}){{0,8}})?", re.ASCII)
_FILES = ("model.safetensors", "pytorch_model.bin")
# `ResNetConfig` of transformers, to the paper's names.
_TRANSFORMERS: dict[Any, str] = {
  ("basic", (2, 2, 2, 2)): "resnet18",
  ("basic", (3, 4, 6, 3)): "resnet34",
  ("bottleneck", (3, 4, 6, 3)): "resnet50",
  ("bottleneck", (3, 4, 23, 3)): "resnet101",
  ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True)
class HubEntry:
  """What a hub repository says of itself.

  Attributes:
    path: Of the weight file in the local cache.
    model: Name for `create_model`; None if the config does not say.
    preprocessing: None if the config does not say.
    class_names: By label; empty if the config does not say.
  """

  path: pathlib.Path
  model: str | None
  preprocessing: Preprocessing | None
  class_names: tuple[str, ...]


def fetch(name: str) -> HubEntry:
  """Returns a hub repository, from the cache if it is there.

  Args:
    name: "hf-hub:owner/repository", with "@revision" if so wanted. The cache
      and `HF_HUB_OFFLINE` are those of huggingface_hub.

  Raises:
    WeightsError: When there is no such repository, or no way to it.
  """
  repository, _, revision = name.removeprefix(PREFIX).partition("@")
  if not (_REPOSITORY.fullmatch(repository) and _REVISION.fullmatch(revision)):
    raise WeightsError(
      f"{name!r} cannot be read: use {PREFIX}owner/repository, with @revision "
      "if so wanted"
    )
  config = _json(repository, revision, "config.json")
  processor = _json(repository, revision, "preprocessor_config.json")
  for file in _FILES:
    if path := _download(repository, revision, file):
      break
  else:
    raise WeightsError(f"{name} has no {' and no '.join(_FILES)}")
  try:
    return HubEntry(
      path, _model(config), _preprocessing(config, processor), _labels(config)
    )
  # All that the JSON of others may lead to.
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
  ) as e:
    raise WeightsError(f"{name} has a config that cannot be: {e!r:.200}") from e


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
  labels = config.get("label_names")
  if not labels:
    by_number = config.get("id2label", {}).items()
    numbered = sorted((int(number), label) for number, label in by_number)
    labels = [label for _, label in numbered]
  if not isinstance(labels, list) or not all(
    isinstance(x, str) for x in labels
  ):
    raise ValueError("the names of the classes are no list of names")
  return tuple(labels)


def _model(config: Mapping[str, Any]) -> str | None:
  if config.get("model_type") == "resnet":
    kind = (config.get("layer_type"), tuple(config.get("depths", ())))
    name = _TRANSFORMERS.get(kind)
    return (
      f"{name}_v1" if name and config.get("downsample_in_bottleneck") else name
    )
  name = config.get("architecture")
  return name if name in list_models() else None


def _preprocessing(
  config: Mapping[str, Any], processor: Mapping[str, Any]
) -> Preprocessing | None:
  if of_timm := config.get("pretrained_cfg"):
    return Preprocessing(
      image_size=of_timm["input_size"][-1],
      crop_fraction=of_timm["crop_pct"],
      # "random" was trained with bilinear and bicubic in turn.
      interpolation=of_timm["interpolation"].replace("random", "bilinear"),
      mean=tuple(of_timm["mean"]),
      std=tuple(of_timm["std"]),
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


def _json(repository: str, revision: str, file: str) -> dict[str, Any]:
  path = _download(repository, revision, file)
  try:
    return read_object(path) if path else {}
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"{file} of {PREFIX}{repository} is not JSON ({error})"
    ) from error


def _download(repository: str, revision: str, file: str) -> pathlib.Path | None:
  """Returns where a file of a repository is, or None if it has none."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return pathlib.Path(
      huggingface_hub.hf_hub_download(
        repository, file, revision=revision or None
      )
    )
  except errors.LocalEntryNotFoundError as error:
    raise WeightsError(
      f"{PREFIX}{repository} is not in the local cache, and the hub cannot be "
      "reached: connect, or give a weight file"
    ) from error
  except errors.EntryNotFoundError:
    return None
  except (
    errors.HfHubHTTPError,
    errors.HFValidationError,
    errors.OfflineModeIsEnabled,
    OSError,
  ) as error:
    what = " ".join(str(error).split())[:200]
    raise WeightsError(
      f"{PREFIX}{repository} cannot be read: {what}"
    ) from error
