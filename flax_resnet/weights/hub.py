"""Repositories of the Hugging Face hub, there or as a folder on this machine.

What they say of their weights: which network, preprocessing and classes.
"""

from collections.abc import Mapping
import pathlib
import re
import socket
from typing import Any
import urllib.parse
import urllib.request

from etils import epy

from flax_resnet import storage
from flax_resnet.errors import WeightsError
from flax_resnet.schema import Interpolation
from flax_resnet.weights import files
from flax_resnet.weights.files import Source
from flax_resnet.weights.preprocessing import Preprocessing

with epy.lazy_imports():  # Slow to import, and only the hub needs it.
  import huggingface_hub
  from huggingface_hub import constants as hub_constants
  from huggingface_hub import errors as hub_errors

PREFIX = "hf-hub:"
# Both become parts of paths in the cache. The hub's client checks the name of a
# repository by itself; a revision it writes to refs/REVISION as it is.
_PART = r"(?!\.\.?(/|$))[\w.-]{1,96}"
_REPOSITORY = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
_REVISION = re.compile(rf"({_PART}(/{_PART}){{0,8}})?", re.ASCII)
# More than any list of classes has; a label is the length of what is made.
_MAX_CLASSES = 1_000_000
# Of timm, of timm at first, of transformers.
_NAMES = ("label_names", "labels", "id2label")
_CONFIG = "config.json"
_WHOLE, _SHARDED = "model.safetensors", "model.safetensors.index.json"
_FILES = (_WHOLE, _SHARDED, "pytorch_model.bin", "pytorch_model.pth")
# timm's arguments of a model that its file says itself, or that change nothing
# in evaluation.
_NO_FIELDS = (
  *("in_chans", "num_classes", "img_size", "drop_rate", "drop_path_rate"),
  *("drop_block_rate", "zero_init_last"),
)
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


class _Folder:
  """A clone of a repository."""

  def __init__(self, folder: pathlib.Path):
    self.name = str(folder)
    self._folder = folder

  def find(self, file: str) -> pathlib.Path | None:
    """Returns the path of a file; None if the repository has no such file."""
    path = self._folder / file
    return path if path.is_file() else None

  def check_is_known(self, file: str) -> None:
    """Raises WeightsError unless a file that was not found is not there."""


class _Repository:
  """A repository of the hub, and what of it is in the cache."""

  def __init__(self, name: str):
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not (
      _REPOSITORY.fullmatch(repository) and _REVISION.fullmatch(revision)
    ):
      raise WeightsError(
        f"{name!r} cannot be read: use {PREFIX}owner/repository, with "
        "@revision if so wanted"
      )
    self.name = f"{PREFIX}{repository}"
    self._where: dict[str, Any] = {
      "repo_id": repository,
      "revision": revision or None,
    }
    self._unreachable = not _answers()

  def find(self, file: str) -> pathlib.Path | None:
    """Returns the path of a file; None if the repository has no such file.

    When the hub cannot be reached, what is not in the cache is taken as not
    there: a repository may never have had it.
    """
    try:
      path = huggingface_hub.hf_hub_download(
        filename=file,
        # The client would wait as long again for each file.
        local_files_only=self._unreachable,
        **self._where,
      )
      return pathlib.Path(path)
    except hub_errors.LocalEntryNotFoundError:
      self._unreachable = True
      return None
    except hub_errors.EntryNotFoundError:
      return None
    except (
      hub_errors.HfHubHTTPError,
      hub_errors.HFValidationError,
      hub_errors.OfflineModeIsEnabled,
      OSError,
    ) as error:
      reason = " ".join(str(error).split())[:200]
      raise WeightsError(f"{self.name} cannot be read: {reason}") from error

  def check_is_known(self, file: str) -> None:
    """Raises WeightsError unless a file that was not found is not there."""
    found = huggingface_hub.try_to_load_from_cache(filename=file, **self._where)
    # Neither a path nor None: the hub had said that there is none.
    if self._unreachable and found is None:
      raise WeightsError(
        f"{self.name} is not in the local cache, and the hub cannot be "
        "reached: connect, or give a weight file"
      )


def _answers() -> bool:
  """Returns whether anything answers at the hub's address.

  Its client asks again and again, for 40 seconds, before it takes what is in
  its cache. Through a proxy nothing can be said, and offline it does not ask.
  """
  if urllib.request.getproxies() or hub_constants.HF_HUB_OFFLINE:
    return True
  url = urllib.parse.urlsplit(hub_constants.ENDPOINT)
  port = url.port or (80 if url.scheme == "http" else 443)
  try:
    socket.create_connection((url.hostname or "", port), timeout=10).close()
  except OSError:
    return False
  return True


def fetch(name: str) -> Source:
  """Returns a hub repository, from the cache if it is there.

  Args:
    name: "hf-hub:owner/repository", with "@revision" if so wanted. The cache,
      `HF_ENDPOINT` and `HF_HUB_OFFLINE` are those of huggingface_hub.

  Raises:
    WeightsError: if there is no such repository, or it cannot be reached.
  """
  return _source(_Repository(name))


def is_clone(folder: pathlib.Path) -> bool:
  """Whether a folder is laid out as a repository of the hub."""
  if any((folder / file).is_file() for file in _FILES):
    return True
  if not (folder / _CONFIG).is_file():
    return False
  config = _read_json(_Folder(folder), _CONFIG)
  return bool(config.keys() & {"architecture", "architectures", "model_type"})


def read_clone(folder: pathlib.Path) -> Source:
  """Returns the weights in a folder as `fetch` does."""
  return _source(_Folder(folder))


def _source(repository: _Repository | _Folder) -> Source:
  config = _read_json(repository, _CONFIG)
  if not config:
    repository.check_is_known(_CONFIG)
  timm, processor = _timm_config(config), {}
  if not timm:  # timm's has no other file: do not ask.
    processor = _read_json(repository, "preprocessor_config.json")
  path = _weights(repository)
  try:
    return Source(
      path,
      _model(config),
      _fields(config),
      _preprocessing(timm, processor),
      _class_names({**config, **timm}),
      config.get("flax_resnet", {}).get("multi_label") is True,
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
      f"{repository.name} has a config that cannot be: {error!r:.200}"
    ) from error


def _weights(repository: _Repository | _Folder) -> pathlib.Path:
  """Returns the path of the weights; all shards of them are there as well."""
  whole, sharded = repository.find(_WHOLE), None
  # Of the hub, a file that is not needed would have to be waited for.
  if whole is None or isinstance(repository, _Folder):
    sharded = repository.find(_SHARDED)
  if whole and sharded:
    raise WeightsError(
      f"{repository.name} has {_WHOLE} and {_SHARDED}, of which one is older: "
      "give one of the two files"
    )
  for shard in files.shards(sharded) if sharded else ():
    if repository.find(shard) is None:
      repository.check_is_known(shard)
  others = (repository.find(file) for file in _FILES[2:])
  if (path := whole or sharded or next(filter(None, others), None)) is None:
    for file in _FILES:
      repository.check_is_known(file)
    raise WeightsError(f"{repository.name} has no {' and no '.join(_FILES)}")
  return path


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  names = next(filter(None, map(config.get, _NAMES)), ())
  if isinstance(names, Mapping):
    by_label = {int(label): name for label, name in names.items()}
    if min(by_label) < 0 or max(by_label) >= _MAX_CLASSES:
      raise ValueError(f"classes {min(by_label)} to {max(by_label)} have names")
    # A class between them may have none.
    labels = range(max(by_label) + 1)
    names = [by_label.get(label, str(label)) for label in labels]
  if not isinstance(names, list | tuple) or not all(
    isinstance(name, str) for name in names
  ):
    raise ValueError("the names of the classes are no list of names")
  return tuple(names)


def _timm_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns what timm says of weights; {} if the config is not timm's."""
  # At first it was the whole file.
  old = config if "architecture" in config and "mean" in config else {}
  return config.get("pretrained_cfg") or old


def _model(config: Mapping[str, Any]) -> str | None:
  if config.get("model_type") == "resnet":
    kind = (config.get("layer_type"), tuple(config.get("depths", ())))
    name = _TRANSFORMERS.get(kind)
    strided_1x1 = config.get("downsample_in_bottleneck")
    return f"{name}_v1" if name and strided_1x1 else name
  name = config.get("architecture")
  if not isinstance(name, str | None):
    raise ValueError(f"architecture is {name!r:.60}")
  return name


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a network that differ from those of its name."""
  # `publish.save_pretrained` has written them.
  fields = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in config.get("flax_resnet", {}).get("fields", {}).items()
  }
  for key, value in config.get("model_args", {}).items():
    if key == "output_stride":
      fields[key] = value
    elif key not in _NO_FIELDS:
      raise ValueError(f"model_args.{key:.60} is not known here")
  return fields


def _preprocessing(
  timm: Mapping[str, Any], processor: Mapping[str, Any]
) -> Preprocessing | None:
  if timm:
    _, height, width = timm.get("test_input_size") or timm["input_size"]
    if (mode := timm.get("crop_mode", "center")) != "center":
      raise ValueError(f"crop_mode is {mode!r:.60}: only center")
    return Preprocessing(
      image_size=width if height == width else (height, width),
      crop_fraction=timm.get("test_crop_pct") or timm["crop_pct"],
      # "random" was trained with bilinear and bicubic in turn.
      interpolation=timm["interpolation"].replace("random", "bilinear"),
      mean=tuple(timm["mean"]),
      std=tuple(timm["std"]),
    )
  if not processor:
    return None
  size = processor.get("size", 224)
  if isinstance(size, Mapping):
    height = size.get("height")
    if height != (width := size.get("width", height)):
      raise ValueError(f"images of {height} x {width} pixels: only squares")
    size = size.get("shortest_edge") or size.get("height") or 224
  return Preprocessing(
    image_size=size,
    crop_fraction=processor.get("crop_pct") or 1.0,
    interpolation=_RESAMPLING.get(processor.get("resample", 2), "bilinear"),
    mean=tuple(processor["image_mean"]),
    std=tuple(processor["image_std"]),
  )


def _read_json(repository: _Repository | _Folder, file: str) -> dict[str, Any]:
  """Returns the object in a file of a repository; {} if it has no such file."""
  path = repository.find(file)
  try:
    return storage.read_json(path) if path else {}
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"{file} of {repository.name} is not JSON ({error})"
    ) from error
