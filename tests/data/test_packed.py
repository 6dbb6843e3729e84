"""Tables that are small, and that processes share."""

import gc
import os
import pathlib
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from flax_resnet.data import packed
from flax_resnet.data.packed import PackedNames, SharedArray

NAMES = ["a", "", "둘/b.jpg", "\udcff.png", "a longer one"]


def test_names_come_back():
  names = PackedNames.pack([("", NAMES[:2]), ("x", []), ("", NAMES[2:])])
  assert [names[i] for i in range(len(names))] == NAMES
  assert names[-1] == NAMES[-1]
  below = PackedNames.pack([("둘/", ["a", "b"]), ("c/", ["d"])])
  assert [below[i] for i in range(3)] == ["둘/a", "둘/b", "c/d"]
  for index in (5, -6):
    with pytest.raises(IndexError):
      names[index]
  with pytest.raises(ValueError, match="holds a NUL"):
    PackedNames.pack([("", ["fine", "a\0b"])])


@pytest.mark.parametrize("rows", [None, [0, 4, 2], [3], [1, 1, 0, 2, 3]])
def test_names_are_joined(rows, monkeypatch):
  monkeypatch.setattr(packed, "_CHUNK", 2)
  names = PackedNames.pack([("", NAMES)])
  chosen = NAMES if rows is None else [NAMES[row] for row in rows]
  rows = None if rows is None else np.array(rows)
  joined = b"".join(part.tobytes() for part in names.joined(rows))
  assert joined == os.fsencode("\0".join(chosen))


def test_a_large_array_is_sent_by_its_file(monkeypatch, tmp_path):
  """Once, however often it is sent; and the file goes with the array."""
  monkeypatch.setattr(packed.tempfile, "tempdir", str(tmp_path))
  array = SharedArray(np.arange(300_000))
  sent = [pickle.dumps(array) for _ in range(3)]
  assert max(map(len, sent)) < 500
  assert len(list(tmp_path.iterdir())) == 1
  received = pickle.loads(sent[0])
  np.testing.assert_array_equal(received.array, array.array)
  assert len(pickle.dumps(received)) < 500  # From one worker to another.
  small = pickle.loads(pickle.dumps(SharedArray(np.arange(3))))
  np.testing.assert_array_equal(small.array, np.arange(3))
  del array
  gc.collect()
  assert not list(tmp_path.iterdir())


def test_columns_come_back_mapped_and_are_those_of_safetensors(tmp_path):
  path = tmp_path / "columns.safetensors"
  columns = {
    "bytes": np.arange(5, dtype=np.uint8),
    "wide": np.arange(200_000).reshape(-1, 2),
    "none": np.zeros(0, np.int32),
    "labels": np.arange(7, dtype=np.int32),
  }
  packed.write_columns(path, columns, {"of": ["둘", 1]})
  assert list(tmp_path.iterdir()) == [path]
  read, about = packed.read_columns(path)
  assert about == {"of": ["둘", 1]}
  theirs = load_file(path)
  assert read.keys() == theirs.keys() == columns.keys()
  for name, column in columns.items():
    np.testing.assert_array_equal(read[name].array, column)
    np.testing.assert_array_equal(theirs[name], column)
    assert read[name].array.dtype == column.dtype
  sent = pickle.dumps(read["wide"])
  assert len(sent) < 500
  np.testing.assert_array_equal(pickle.loads(sent).array, columns["wide"])


def test_another_file_of_the_name_is_never_taken_for_it(tmp_path):
  """A worker starts when the index was written anew by another process."""
  path = tmp_path / "columns.safetensors"
  packed.write_columns(path, {"a": np.arange(200_000)}, 1)
  (read, _) = packed.read_columns(path)
  sent = pickle.dumps(read["a"])
  packed.write_columns(path, {"a": -np.arange(200_000)}, 1)
  with pytest.raises(OSError, match="was replaced while"):
    pickle.loads(sent)
  again = pickle.loads(pickle.dumps(read["a"]))
  np.testing.assert_array_equal(again.array, np.arange(200_000))


def test_what_is_no_index_is_none(tmp_path):
  path = tmp_path / "columns.safetensors"
  packed.write_columns(path, {"a": np.arange(20)}, 1)
  whole = path.read_bytes()
  assert packed.read_columns(tmp_path / "none") is None
  for cut in range(len(whole)):
    path.write_bytes(whole[:cut])
    assert packed.read_columns(path) is None
  path.write_bytes(b"\xff" * 100)
  assert packed.read_columns(pathlib.Path(path)) is None
