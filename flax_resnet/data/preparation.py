"""Preparing TFDS data sets, so that they can be read by index."""

import importlib.util
import os


def prepare(name: str, data_dir: str | None) -> str:
  """Downloads a TFDS data set and stores it as array_record.

  Args:
    name: Of the set, "digits" included.
    data_dir: The folder to store it in; None for TFDS's own default.

  Returns:
    A line that says where it is and what it holds.

  Raises:
    ValueError: When there is no such set, or TensorFlow is missing.
    OSError: When it cannot be downloaded or written.
  """
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  if name == "digits":
    from flax_resnet.data import digits

    builder = digits.prepare(data_dir)
  else:
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
    builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
  counts = ", ".join(
    f"{split} {info.num_examples:,}"
    for split, info in builder.info.splits.items()
  )
  return f"{builder.data_path}: {counts}"
