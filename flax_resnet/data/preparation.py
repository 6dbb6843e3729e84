"""Preparing TFDS data sets, so that they can be read by index."""

import importlib.util
import os
import pathlib
from typing import Any


def prepare(
  name: str, data_dir: str | None, manual_dir: str | None = None
) -> str:
  """Downloads a TFDS data set and stores it as array_record.

  TFDS says how much it will be, and shows how far it is.

  Args:
    name: Of the set, "digits" included.
    data_dir: The folder to store it in; None for TFDS's own default.
    manual_dir: The folder of archives that are there already, as those of
      imagenet2012 have to be; None for `downloads/manual` in the folder of all
      sets.

  Returns:
    A line that says where it is and what it holds.

  Raises:
    ValueError: When there is no such set, or TensorFlow or archives are
      missing.
    OSError: When it cannot be downloaded or written.
  """
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
    _check_can_be_written(data_dir)
  if manual_dir is not None:
    manual_dir = os.path.expanduser(manual_dir)
    if not os.path.isdir(manual_dir):
      what = "a folder" if os.path.exists(manual_dir) else "there"
      raise ValueError(f"the manual folder {manual_dir} is not {what}")
  if name == "digits":
    from flax_resnet.data import digits

    builder = digits.prepare(data_dir)
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
  """Returns the builder of a set, which is prepared."""
  if importlib.util.find_spec("tensorflow") is None:
    raise ValueError(
      "TFDS prepares data sets with TensorFlow, which is not installed: "
      "pip install 'flax_resnet[prepare]'"
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f"TFDS has no data set {name!r}") from error
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
      file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
  except Exception as error:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and _says_missing(error):
      raise ValueError(_wanted(builder, manual_dir)) from error
    raise
  return builder


def _says_missing(error: Exception) -> bool:
  """Whether TFDS, or TensorFlow below it, has not found a file."""
  # By name: TensorFlow's NotFoundError is none of Python's errors.
  names = {kind.__name__ for kind in type(error).__mro__}
  return bool(names & {"AssertionError", "FileNotFoundError", "NotFoundError"})


def _wanted(builder: Any, manual_dir: str | None) -> str:
  """Says which archives are missing, and where."""
  folder = manual_dir or builder.data_dir_root / "downloads" / "manual"
  what = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip(".")
  return (
    f"archives are missing in {folder}, and TFDS cannot download them "
    f"({what}): put them there, or say where they are by --manual-dir DIR"
  )


def _check_can_be_written(folder: str) -> None:
  """Raises ValueError unless a folder can be written or made."""
  path = pathlib.Path(folder).absolute()
  existing = next(p for p in (path, *path.parents) if p.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise ValueError(
      f"{folder} cannot be written, because {existing} "
      + ("is not writable" if existing.is_dir() else "is not a folder")
      + ": choose another --data-dir"
    )
