import pytest

from tests.data import images


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
  """A TFDS folder with the sets "shapes" and "captions"."""
  from tests.data import tfds_sets  # Slow to import.

  path = tmp_path_factory.mktemp("shapes")
  tfds_sets.write_sets(str(path))
  return str(path)


@pytest.fixture
def split_folder(tmp_path):
  """A folder a split, of a folder a class."""
  return images.write_split_folder(tmp_path)
