from PIL import Image
import pytest
import tensorflow_datasets as tfds

from tests.data import images


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Ten photographs of several sizes, whose color tells the record."""

  VERSION = tfds.core.Version("1.0.0")
  LABELS = ("disc", "square")

  def _label(self):
    return tfds.features.ClassLabel(names=list(self.LABELS))

  def _info(self):
    image = tfds.features.Image(shape=(None, None, 3))
    features = {"image": image, "label": self._label()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(10):
      image = images.encode(Image.new("RGB", (20 + i, 30), (10 * i, 0, 0)))
      yield i, {"image": image, "label": self.LABELS[i % 2]}


class Captions(Shapes):
  """A set whose label is not a class."""

  def _label(self):
    return tfds.features.Text()


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
  """A TFDS folder with the sets "shapes" and "captions"."""
  path = str(tmp_path_factory.mktemp("shapes"))
  for builder in (Shapes, Captions):
    builder(
      data_dir=path, file_format=tfds.core.FileFormat.ARRAY_RECORD
    ).download_and_prepare()
  return path


@pytest.fixture
def split_folder(tmp_path):
  """A folder a split, of a folder a class."""
  return images.write_split_folder(tmp_path)
