"""Records by index: step 1 of the way of a batch."""

from collections.abc import Sequence
import difflib
import operator
from typing import Any, Protocol, runtime_checkable, SupportsIndex, TypedDict

import numpy as np

from flax_resnet.data import transforms


class Record(TypedDict):
  """One example: an encoded file, or uint8 [h, w, c], and its class."""

  image: bytes | np.ndarray
  label: int


@runtime_checkable
class Source(Protocol):
  """Examples by index; safe to read from several threads at once."""

  @property
  def channels(self) -> int: ...

  @property
  def class_names(self) -> Sequence[str]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex, /) -> Record: ...

  def __getitems__(self, indices: Sequence[int], /) -> list[Record]: ...


class TFDSSource:
  """A split of a prepared TFDS image-classification set (array_record).

  Images stay encoded. The set is read from its files alone: neither TensorFlow
  nor the code that prepared it is needed.

  Args:
    name: Of the set: "cifar10", "cifar10:3.0.2".
    split: In TFDS's notation: "train", "train[:90%]".
    data_dir: The folder that holds the set; None for TFDS's own default.

  Raises:
    ValueError: When there is no such split, when the set is not one of
      labelled images, or when it was prepared in another format.
    FileNotFoundError: When the set is not there.
  """

  def __init__(self, name: str, split: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    # TFDS hides the types of what is used here behind decorators.
    decode: Any = tfds.decode
    builder: Any = _find(name, data_dir)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
      raise ValueError(
        f"data set {name!r} in {builder.data_path} is stored as "
        f"{builder.info.file_format.value}, which has no random access: "
        f"prepare it in another folder with 'python -m flax_resnet prepare "
        f"{name} --data-dir DIR'"
      )
    features = builder.info.features
    if not (
      {"image", "label"} <= set(features)
      and isinstance(features["image"], tfds.features.Image)
      and isinstance(features["label"], tfds.features.ClassLabel)
    ):
      raise ValueError(
        f"data set {name!r} has the features {', '.join(features)}: use an "
        "image-classification set, with an 'image' and a class as 'label'"
      )
    try:
      self._records = builder.as_data_source(
        split, decoders={"image": decode.SkipDecoding()}
      )
    except (ValueError, AssertionError) as error:
      raise ValueError(
        f"data set {name!r} has no split {split!r}: use one of "
        f"{', '.join(builder.info.splits)}, or a part that is not empty, such "
        "as 'train[:90%]'"
      ) from error
    self.channels = 1 if features["image"].shape[-1] == 1 else 3
    self.class_names = features["label"].names

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._record(self._records[index])

  def __getitems__(self, indices: Sequence[int]) -> list[Record]:
    return [self._record(r) for r in self._records.__getitems__(indices)]

  def _record(self, record) -> Record:
    return {"image": record["image"], "label": int(record["label"])}


def _find(name: str, data_dir: str | None):
  """Returns the TFDS builder of a set that is on disk."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import constants, read_only_builder

  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    names = ["digits", "synthetic", *_tfds_names()]
    plain = name.split(":")[0].split("/")[0]
    close = difflib.get_close_matches(plain, names, n=1)
    if plain not in names and close:
      raise ValueError(
        f"unknown data set {name!r}: did you mean {close[0]!r}?"
      ) from error
    raise FileNotFoundError(
      f"data set {name!r} is not prepared in "
      f"{data_dir or constants.DATA_DIR}: run 'python -m flax_resnet "
      f"prepare {name}"
      + (f" --data-dir {data_dir}" if data_dir else "")
      + "', "
      "or set config.data.data_dir to the folder that holds it"
    ) from error


def _tfds_names() -> list[str]:
  import tensorflow_datasets as tfds

  return tfds.list_builders(with_community_datasets=False)


class SyntheticSource:
  """Noise around one random picture a class; for benchmarks and tests.

  Args:
    num_examples: How many records.
    image_size: Height and width.
    num_classes: Labels run from 0 to `num_classes - 1`.
  """

  channels = 3

  def __init__(self, num_examples: int, image_size: int, num_classes: int):
    self._num_examples = num_examples
    self._shape = (image_size, image_size, self.channels)
    self.class_names = [str(label) for label in range(num_classes)]

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: SupportsIndex) -> Record:
    label = operator.index(index) % len(self.class_names)
    picture = np.random.default_rng(label).integers(
      64, 192, self._shape, dtype=np.uint8
    )
    noise = np.random.default_rng((1, operator.index(index))).integers(
      0, 64, self._shape, dtype=np.uint8
    )
    return {"image": picture + noise, "label": label}

  def __getitems__(self, indices: Sequence[int]) -> list[Record]:
    return [self[index] for index in indices]


class InMemory:
  """Another source, decoded once into memory."""

  def __init__(self, source: Source):
    self.channels = source.channels
    self.class_names = source.class_names
    self._records = [
      Record(
        image=transforms.decode(record["image"], source.channels),
        label=record["label"],
      )
      for record in source.__getitems__(range(len(source)))
    ]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._records[index]

  def __getitems__(self, indices: Sequence[int]) -> list[Record]:
    return [self._records[index] for index in indices]
