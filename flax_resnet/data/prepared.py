"""Prepared TFDS sets as sources."""

import difflib
import operator
from typing import Any, SupportsIndex

from flax_resnet.data.sources import Record

# Sets that are not TFDS's own.
OTHERS = ("digits", "synthetic", "folder", "npz")


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
    self._title = f"{name} {split} in {builder.data_path}"
    self.channels = 1 if features["image"].shape[-1] == 1 else 3
    self.class_names = features["label"].names

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    record = self._records[index]
    return {"image": record["image"], "label": int(record["label"])}

  def name(self, index: SupportsIndex) -> str:
    """Returns what a record is called in messages."""
    return f"record {operator.index(index)} of {self._title}"


def _find(name: str, data_dir: str | None):
  """Returns the TFDS builder of a set that is on disk."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import constants, read_only_builder

  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    names = [*OTHERS, *_tfds_names()]
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
