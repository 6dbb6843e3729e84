"""Damaged weight files: .safetensors, PyTorch's, and Flax checkpoints."""

import builtins
import functools
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

import flax_resnet as fr
from flax_resnet.errors import reported_as
from flax_resnet.weights import files, load_pretrained
from tests.drawing import variables_of
from tests.hostile.mutations import damaged, damaged_json
from tests.hostile.survival import COUNTS, survive

NAME = "cifar_resnet8"
FIELDS = {"stage_features": (4, 4, 8)}


@functools.cache
def state_dict():
  model = fr.create_model(NAME, **FIELDS)
  return fr.to_torch(variables_of(model, (1, 8, 8, 3)), model)


def load(path):
  with reported_as("--weights"):
    loaded = load_pretrained(path, NAME, **FIELDS)
    assert loaded.variables["params"]["stem"]["conv"]["kernel"].shape[2] < 5


def fuzz(tmp_path, count, ending, make):
  path = tmp_path / f"weights{ending}"

  def attempt(rng):
    path.write_bytes(make(rng))
    return lambda: load(path)

  ends = survive(tmp_path, count, attempt)
  assert ends["refused"] > count // 2


def with_header(header):
  """Returns a .safetensors file with this header."""
  data = save(state_dict())
  (size,) = struct.unpack_from("<Q", data)
  return struct.pack("<Q", len(header)) + header + data[8 + size :]


@functools.cache
def header():
  data = save(state_dict())
  (size,) = struct.unpack_from("<Q", data)
  return json.loads(data[8 : 8 + size])


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_safetensors(tmp_path, count):
  small = save({"fc.weight": np.zeros((2, 3), np.float16)})
  good = [save(state_dict()), small]

  def make(rng):
    if rng.random() < 0.5:
      return damaged(rng.choice(good), rng, good)
    return with_header(damaged_json(header(), rng))

  fuzz(tmp_path, count, ".safetensors", make)


class Reduced:
  """Pickles as a call of anything, which unpickling would do."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


def evil(path):
  """Returns objects that would do something when they are unpickled."""
  touch = f"touch {path}"
  code = f"open({str(path)!r}, 'w')"
  return [
    Reduced(os.system, (touch,)),
    Reduced(builtins.eval, (code,)),
    Reduced(builtins.exec, (code,)),
    Reduced(pathlib.Path.touch, (path,)),
    Reduced(builtins.getattr, (1, "real")),
    Reduced(__import__, ("os",)),
    Reduced(shutil.rmtree, (str(path.parent),)),
    Reduced(np.ndarray, ((10**12,),)),
    Reduced(bytearray, (10**12,)),
  ]


def pytorch_files(path):
  """Returns good files of PyTorch, and some that would run code."""
  torch = pytest.importorskip("torch")
  tensors = {key: torch.tensor(value) for key, value in state_dict().items()}
  found = []
  for zipped in (True, False):
    for values in (tensors, {"state_dict": tensors, "epoch": 3}):
      file = io.BytesIO()
      torch.save(values, file, _use_new_zipfile_serialization=zipped)
      found.append(file.getvalue())
    for thing in evil(path):
      file = io.BytesIO()
      torch.save(
        {"conv1.weight": thing}, file, _use_new_zipfile_serialization=zipped
      )
      found.append(file.getvalue())
  plain = [pickle.dumps(x, protocol) for x in evil(path) for protocol in (0, 2)]
  return found + plain


def repacked(data, rng, good):
  """Returns a zip of PyTorch whose pickle, or another part, is damaged."""
  if not zipfile.is_zipfile(io.BytesIO(data)):
    return data
  file = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(data)) as old,
    zipfile.ZipFile(file, "w") as new,
  ):
    names = old.namelist()
    chosen = rng.choice([n for n in names if n.endswith(".pkl")] * 9 + names)
    for name in names:
      part = old.read(name)
      new.writestr(name, damaged(part, rng, good) if name == chosen else part)
  return file.getvalue()


@pytest.mark.parametrize(
  "count", [pytest.param(300, marks=pytest.mark.deep), COUNTS[1]]
)
def test_damaged_pytorch_files(tmp_path, count):
  owned = tmp_path / "owned"
  good = pytorch_files(owned)

  def make(rng):
    data = rng.choice(good)
    if rng.random() < 0.4:
      return repacked(data, rng, good)
    return data if rng.random() < 0.05 else damaged(data, rng, good)

  fuzz(tmp_path, count, ".pth", make)
  assert not owned.exists()
  assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
  "count", [pytest.param(300, marks=pytest.mark.deep), COUNTS[1]]
)
def test_damaged_checkpoints(tmp_path, count):
  whole, folder = tmp_path / "whole", tmp_path / "weights"
  head = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
  few = {"params": {"head": head}, "batch_stats": {"mean": jnp.ones(4)}}
  files.write_checkpoint(whole, few)
  contents = {
    path.relative_to(whole): path.read_bytes()
    for path in whole.rglob("*")
    if path.is_file()
  }
  shutil.copytree(whole, folder)

  def attempt(rng):
    name = rng.choice(sorted(contents))
    data = contents[name]
    if name.name == "_METADATA" and rng.random() < 0.5:
      data = damaged_json(json.loads(data), rng)
    else:
      data = damaged(data, rng, list(contents.values()))
    for path, content in {**contents, name: data}.items():
      if (folder / path).read_bytes() != content:
        (folder / path).write_bytes(content)

    def read():
      with reported_as("--weights"):
        files.read_checkpoint(folder)

    # It is of no network, which takes longer to tell.
    return (lambda: load(folder)) if rng.random() < 0.05 else read

  survive(tmp_path, count, attempt)
