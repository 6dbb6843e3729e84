"""TFDS data sets: reading those that are prepared, and preparing them.

`tensorflow_datasets` is slow to import, so this module is imported lazily.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import io
import operator
import os
import pathlib
import re
from typing import Any, SupportsIndex

from etils import epy
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from flax_resnet.data.identity import Identity
from flax_resnet.data.sources import no_split, Record
from flax_resnet.errors import ImageError, suggestion

with epy.lazy_imports():  # Slow to import, and needed only once.
  from sklearn import datasets as sklearn_datasets

# Data sets that are not TFDS's own.
OTHERS = (
  *("digits", "synthetic", "folder", "manifest", "webdataset", "parquet"),
  "npz",
)
NUM_TRAIN_DIGITS = 1437


class TFDSSource:
  """A split of a prepared TFDS image-classification set (array_record).

  Images stay encoded. The set is read from its files alone: neither TensorFlow
  nor the code that prepared it is needed.

  Args:
    name: name of the set: "cifar10", "cifar10:3.0.2".
    split: a split in the notation of TFDS: "train", "train[:90%]".
    data_dir: folder that holds the set, "~" for the home; None for TFDS's own
      default.

  Raises:
    ValueError: if there is no such split or nothing in it, if the set is not
      one of labeled images, or if it was prepared in another format.
    FileNotFoundError: if the set is not there.
  """

  def __init__(self, name: str, split: str, data_dir: str | None):
    # TFDS hides the types of what is used here behind decorators.
    decode: Any = tfds.decode
    builder: Any = _open_builder(
      name, data_dir and os.path.expanduser(data_dir)
    )
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
        f"data set {name!r} has the features {', '.join(sorted(features))}: "
        "use an image-classification set, with an 'image' and a class as "
        "'label'"
      )
    if features["image"].np_dtype not in (np.uint8, np.uint16):
      # TFDS writes the bits of floats as the colors of a PNG.
      raise ValueError(
        f"data set {name!r} has images of "
        f"{np.dtype(features['image'].np_dtype)}: use one of uint8 or uint16"
      )
    splits = builder.info.splits
    sizes = {key: info.num_examples for key, info in splits.items()}
    try:
      self._parts = splits[split].file_instructions
    except (ValueError, AssertionError) as error:
      problem = no_split(split, sizes, error)
      raise ValueError(f"data set {name!r}: {problem}") from error
    takes = [part.take for part in self._parts]
    if min(takes, default=0) <= 0:  # Of [10:5] TFDS takes -5.
      raise ValueError(f"data set {name!r}: {no_split(split, sizes)}")
    self._ends = np.cumsum(takes)
    self._records = builder.as_data_source(
      split, decoders={"image": decode.SkipDecoding()}
    )
    self._title = f"{name} {split} in {builder.data_path}"
    self._identity = {"data set": builder.info.full_name, "splits": sizes}
    self.channels = 1 if features["image"].shape[-1] == 1 else 3
    self.class_names = features["label"].names

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = operator.index(index)
    try:
      record = self._records[index]
    except (IndexError, MemoryError):
      raise
    except Exception as error:  # array_record and protobuf: whatever they meet.
      raise ImageError(
        f"{self._place(index)} cannot be read: {error}"
      ) from error
    return {"image": record["image"], "label": int(record["label"])}

  def _place(self, index: int) -> str:
    """Returns the file that holds a record, and the record's number in it."""
    number = int(np.searchsorted(self._ends, index, side="right"))
    part = self._parts[number]
    first = self._ends[number] - part.take
    return f"{part.filename}, its record {part.skip + index - first},"

  def name(self, index: SupportsIndex) -> str:
    return f"record {operator.index(index)} of {self._title}"

  def identity(self) -> Identity:
    """Returns what tells these records apart: set, version, split sizes."""
    return self._identity


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Returns the TFDS builder of a set that is on disk."""
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    known = [*OTHERS, *tfds.list_builders(with_community_datasets=False)]
    plain = name.split(":")[0].split("/")[0]
    hint = suggestion(plain, known)
    if plain not in known and hint.startswith("did you mean"):
      raise ValueError(f"unknown data set {name!r}: {hint}") from error
    where = f" --data-dir {data_dir}" if data_dir else ""
    raise FileNotFoundError(
      f"data set {name!r} is not prepared in "
      f"{data_dir or constants.DATA_DIR}: run 'python -m flax_resnet prepare "
      f"{name}{where}', or set config.data.data_dir to the folder that holds it"
    ) from error
  except Exception as error:  # Readers of JSON: whatever they meet.
    raise ValueError(
      f"data set {name!r} in {data_dir or constants.DATA_DIR} is damaged "
      f"({error}): prepare it again"
    ) from error


def is_known(name: str) -> bool:
  """Returns whether TFDS, or this package, prepares a set of this name."""
  known = ["digits", *tfds.list_builders(with_community_datasets=False)]
  return re.split("[:/]", name)[0] in known


def split_names(name: str, data_dir: str | None) -> list[str]:
  """Returns the splits of a prepared set, "digits" being prepared for it."""
  if name == "digits":
    prepare_digits(data_dir)
  return [str(split) for split in _open_builder(name, data_dir).info.splits]


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,797 real handwritten digits, carried by scikit-learn.

  Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI): 8x8
  pixels of 17 gray levels. The first 1,437 train and the last 360 test: the
  file's order, in which the test digits come from other writers.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1)),
          "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
        }
      ),
      supervised_keys=("image", "label"),
      # Keeps the file's order, so that `train[:1077]` is the first writers.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    pixels, labels = sklearn_datasets.load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    n = NUM_TRAIN_DIGITS
    return {
      "train": self._generate_examples(images[:n], labels[:n]),
      "test": self._generate_examples(images[n:], labels[n:]),
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      png = io.BytesIO()
      Image.fromarray(image).save(png, "PNG")
      yield i, {"image": png.getvalue(), "label": int(label)}


def prepare_digits(data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Writes the digits if they are not there yet: about a second.

  Needs neither a download nor TensorFlow.
  """
  builder = Digits(data_dir=data_dir)
  if not builder.is_prepared():
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner.
      tfds.disable_progress_bar()
      with write_errors_reported(builder.data_path):
        try:
          builder.download_and_prepare(
            file_format=tfds.core.FileFormat.ARRAY_RECORD
          )
        except OSError as error:  # Such as a home that cannot be written.
          raise OSError(
            f"the digits cannot be kept in {builder.data_path.parents[1]} "
            f"({error}): set data_dir to a folder that can be written"
          ) from error
  return builder


def prepare(
  name: str, data_dir: str | None, manual_dir: str | None = None
) -> str:
  """Downloads a TFDS data set and stores it as array_record.

  TFDS says how much it will be, and shows how far it is.

  Args:
    name: name of the set, "digits" included.
    data_dir: folder to store it in; None for TFDS's own default.
    manual_dir: folder of archives that are there already, as those of
      imagenet2012 have to be; None (default) for `downloads/manual` in the
      folder of all sets.

  Returns:
    A line that says where it is and what it holds.

  Raises:
    ValueError: if there is no such set, or TensorFlow or archives are missing.
    OSError: if it cannot be downloaded or written.
  """
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
    check_can_be_written(data_dir)
  if manual_dir is not None:
    manual_dir = os.path.expanduser(manual_dir)
    if not os.path.isdir(manual_dir):
      problem = "a folder" if os.path.exists(manual_dir) else "there"
      raise ValueError(f"the manual folder {manual_dir} is not {problem}")
  if name == "digits":
    builder = prepare_digits(data_dir)
  else:
    builder = _prepare_with_tensorflow(name, data_dir, manual_dir)
  counts = ", ".join(
    f"{split} {info.num_examples:,}"
    for split, info in builder.info.splits.items()
  )
  return f"{builder.data_path}: {counts}"


def _prepare_with_tensorflow(
  name: str, data_dir: str | None, manual_dir: str | None
) -> Any:
  """Prepares a set and returns its builder."""
  if importlib.util.find_spec("tensorflow") is None:
    raise ValueError(
      "TFDS prepares data sets with TensorFlow, which is not installed: "
      "pip install 'flax_resnet[prepare]'"
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f"TFDS has no data set {name!r}") from error
  try:
    with write_errors_reported(builder.data_path):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
      )
  except Exception as error:
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if not instructions or not _is_missing_file(error):
      raise
    folder = manual_dir or builder.data_dir_root / "downloads" / "manual"
    raise ValueError(
      f"archives are missing in {folder}, and TFDS cannot download them "
      f"({' '.join(instructions.split()).rstrip('.')}): put them there, or say "
      "where they are by --manual-dir DIR"
    ) from error
  return builder


@contextlib.contextmanager
def write_errors_reported(path: str | os.PathLike) -> Iterator[None]:
  """Raises an OSError for what array_record raises of a full disk."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f"{path} cannot be written: {error}") from error


def _is_missing_file(error: Exception) -> bool:
  """Returns whether TFDS, or TensorFlow below it, has not found a file."""
  # By name: TensorFlow's NotFoundError is none of Python's errors.
  names = {kind.__name__ for kind in type(error).__mro__}
  return bool(names & {"AssertionError", "FileNotFoundError", "NotFoundError"})


def check_can_be_written(folder: str) -> None:
  """Raises ValueError unless a folder can be written or made."""
  path = pathlib.Path(folder).absolute()
  existing = next(p for p in (path, *path.parents) if p.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    problem = "is not writable" if existing.is_dir() else "is not a folder"
    raise ValueError(
      f"{folder} cannot be written, because {existing} {problem}: choose "
      "another --data-dir"
    )
