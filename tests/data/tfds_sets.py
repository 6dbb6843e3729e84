"""Small TFDS sets that are prepared without TensorFlow."""

from PIL import Image
import tensorflow_datasets as tfds

from tests.data.images import encode


class Captions(tfds.core.GeneratorBasedBuilder):
  """A set whose label is not a class."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(4, 4, 3)),
      "label": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    yield 0, {"image": encode(Image.new("RGB", (4, 4))), "label": "a square"}


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Ten photographs of several sizes, whose color tells the record."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=["disc", "square"]),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(10):
      image = Image.new("RGB", (20 + i, 30), (10 * i, 0, 0))
      yield i, {"image": encode(image, "JPEG"), "label": i % 2}


def write_sets(data_dir: str) -> None:
  """Writes both sets as array_record."""
  for builder in (Shapes, Captions):
    builder(
      data_dir=data_dir, file_format=tfds.core.FileFormat.ARRAY_RECORD
    ).download_and_prepare()
