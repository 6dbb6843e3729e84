import json
import math

import numpy as np
import pytest

from flax_resnet import storage
from flax_resnet.errors import InputError


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
  values = {"a": [1.5, math.nan, (math.inf, np.float64(-math.inf))], "b": None}
  wanted = {"a": [1.5, None, [None, None]], "b": None}
  assert json.loads(storage.to_json(values)) == wanted
  storage.write_json(tmp_path / "a.json", values)
  assert storage.read_json(tmp_path / "a.json") == wanted


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
  path = tmp_path / "a.png"
  path.write_text("old")
  with pytest.raises(KeyError), storage.replacing(path) as partial:
    partial.write_text("ne")
    raise KeyError
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
  with storage.replacing(path) as partial:
    partial.write_text("new")
    assert partial.suffix == ".png"  # Formats go by the ending of a name.
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[1]", "something else than an object"),
    ('{"a": ' + "[" * 40 + "]" * 40 + "}", "too many brackets"),
    ('{"a": ' * 10**5, "too many brackets"),
    ("{", "Expecting property name"),
    ("\0", "Expecting value"),
    (" " * (2**26 + 1), "more than 67,108,864 bytes"),
  ],
  ids=["array", "deep", "deeper", "cut", "nonsense", "huge"],
)
def test_json_of_strangers_has_limits(tmp_path, text, message):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    storage.read_json(path)
  with pytest.raises(InputError, match=f"config.json is not JSON .{message}"):
    storage.read_config(tmp_path)


def test_a_folder_without_a_config_is_no_workdir(tmp_path):
  with pytest.raises(InputError, match="not a workdir: it has no config.json"):
    storage.read_config(tmp_path)


def test_checkpoints_are_the_folders_that_are_called_by_a_step(tmp_path):
  assert storage.checkpoint_steps(tmp_path / "none") == []
  for name in ("2", "10", "9", "damaged-4", "11.orbax-checkpoint-tmp", "x"):
    (tmp_path / name).mkdir()
  assert storage.checkpoint_steps(tmp_path) == [10, 9, 2]


@pytest.fixture
def folder(tmp_path):
  """A folder of three files and their digests."""
  (tmp_path / "d").mkdir()
  for name in ("a", "b", "d/c"):
    (tmp_path / name).write_text(name)
  storage.write_digests(tmp_path)
  return tmp_path


def test_every_difference_to_what_was_written_is_seen(folder):
  assert storage.difference(folder) is None
  (folder / "commit_success.txt").touch()  # Orbax writes it later.
  assert storage.difference(folder) is None
  (folder / "d/c").write_text("d/d")
  assert storage.difference(folder) == "d/c is not as it was written"
  (folder / "a").unlink()
  assert storage.difference(folder) == "a is missing"
  (folder / "0").touch()
  assert storage.difference(folder) == "0 is not as it was written"
  (folder / storage.DIGESTS).write_text("{")
  assert storage.difference(folder).startswith("digests.json: Expecting")
  (folder / storage.DIGESTS).unlink()  # As others write checkpoints.
  assert storage.difference(folder) is None
