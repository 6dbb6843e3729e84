"""Weight files and checkpoints: what is written is what is read."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from flax_resnet.models.variables import named_leaves, stack
from flax_resnet.weights import files


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key, value in b.items():
    np.testing.assert_array_equal(a[key], value, strict=True)


def test_a_transposed_view_is_written_as_it_is(tmp_path):
  """By itself, safetensors scrambles its numbers."""
  view = np.arange(6, dtype=np.float32).reshape(2, 3).T
  files.write(tmp_path / "x.safetensors", {"x": view})
  np.testing.assert_array_equal(
    load_file(tmp_path / "x.safetensors")["x"], view
  )


def test_a_file_is_replaced_whole_or_not_at_all(
  state_dict, tmp_path, monkeypatch
):
  path = tmp_path / "weights.safetensors"
  files.write(path, {"x": np.zeros(3)})
  before = path.read_bytes()

  def fail(tensors, file):
    pathlib.Path(file).write_bytes(b"half")
    raise OSError("the disk is full")

  with monkeypatch.context() as patch:
    patch.setattr(files.safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="full"):
      files.write(path, state_dict)
  assert path.read_bytes() == before
  files.write(path, state_dict)
  assert_same(load_file(path), state_dict)


def test_a_checkpoint_of_stacked_blocks_is_one_of_single_blocks(
  variables, tmp_path
):
  files.write_checkpoint(tmp_path / "flax", stack(variables))
  assert_same(files.read(tmp_path / "flax"), named_leaves(variables))


@pytest.mark.deep
def test_files_of_pytorch(state_dict, tmp_path):
  torch = pytest.importorskip("torch")
  tensors = {k: torch.tensor(v) for k, v in state_dict.items()}
  torch.save({"state_dict": tensors, "best": 0.9}, tmp_path / "weights.th")
  found = files.read(tmp_path / "weights.th")
  assert_same({k: v.numpy() for k, v in found.items()}, state_dict)
  files.write(tmp_path / "back.pth", state_dict)
  back = torch.load(tmp_path / "back.pth", weights_only=True)
  assert_same({k: v.numpy() for k, v in back.items()}, state_dict)
