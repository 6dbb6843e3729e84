"""The digits set: 1,797 real handwritten digits, carried by scikit-learn.

Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI): 8x8
pixels of 17 grey levels. The first 1,437 train and the last 360 test: the
file's order, in which the test digits come from other writers.
"""

import contextlib
import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

NUM_TRAIN = 1437


def prepare(data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Writes the set as array_record if it is not there yet: about a second."""
  builder = Digits(data_dir=data_dir)
  if not builder.is_prepared():
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner.
      tfds.disable_progress_bar()
      builder.download_and_prepare(
        file_format=tfds.core.FileFormat.ARRAY_RECORD
      )
  return builder


class Digits(tfds.core.GeneratorBasedBuilder):
  """A TFDS builder that needs neither a download nor TensorFlow."""

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
    from sklearn import datasets  # Slow to import, and needed only once.

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return {
      "train": self._generate_examples(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
      "test": self._generate_examples(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      png = io.BytesIO()
      Image.fromarray(image).save(png, "PNG")
      yield i, {"image": png.getvalue(), "label": int(label)}
