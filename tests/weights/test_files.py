"""Weight files and checkpoints: what is written is what is read."""

import argparse
import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flax_resnet as fr
from flax_resnet.models.variables import named_leaves, stack
from flax_resnet.weights import files, load_pretrained, WeightsError
from tests.weights.conftest import CASE


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


def test_others_may_read_a_file_as_any_other(tmp_path):
  """By itself, safetensors lets its owner alone."""
  (tmp_path / "other").touch()
  files.write(tmp_path / "x.safetensors", {"x": np.zeros(3)})
  modes = {path.stat().st_mode for path in tmp_path.iterdir()}
  assert len(modes) == 1


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


def test_the_average_of_a_run_is_taken_unless_told_not_to(variables, tmp_path):
  average = jax.tree.map(lambda leaf: leaf + 1, variables)
  files.write_checkpoint(tmp_path / "flax", {**variables, "average": average})
  for ema, expected in ((True, average), (False, variables)):
    found = files.read(tmp_path / "flax", ema=ema)
    assert_same(found, named_leaves(expected))
    loaded = load_pretrained(
      tmp_path / "flax", CASE.model, ema=ema, **dict(CASE.fields)
    )
    assert_same(named_leaves(loaded.variables), named_leaves(expected))


def test_shards_are_read_together(state_dict, tmp_path):
  """As a clone of a repository, and by their index."""
  names = sorted(state_dict)
  shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
  for shard, part in shards.items():
    save_file({name: state_dict[name] for name in part}, tmp_path / shard)
  weight_map = {name: k for k, part in shards.items() for name in part}
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  assert_same(files.read(index), state_dict)
  expected = fr.from_torch(state_dict, CASE.network())
  for path in (tmp_path, index):
    _, found = fr.from_pretrained(path, CASE.model, **dict(CASE.fields))
    assert_same(named_leaves(found), named_leaves(expected))


def test_half_precision_is_read_exactly(state_dict, tmp_path):
  for dtype in (ml_dtypes.bfloat16, np.float16):
    short = {k: v.astype(dtype) for k, v in state_dict.items() if v.ndim}
    save_file(short, tmp_path / "x.safetensors")
    _, found = fr.from_pretrained(
      tmp_path / "x.safetensors", CASE.model, **dict(CASE.fields)
    )
    expected = {k: v.astype(np.float32) for k, v in short.items()}
    assert_same(
      named_leaves(found),
      named_leaves(fr.from_torch(expected, CASE.network())),
    )


def behind(prefix, tensors):
  return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


ARGS = argparse.Namespace(lr=0.1, data="/x", amp=True, sizes=[1, (2, 3)])
# Of each kind of file: its name, what torch saves of the tensors of a network
# and of their average, and which of the two is taken, and said.
SAVED = {
  "timm's train.py": (
    "model_best.pth.tar",
    lambda raw, average, state: {
      **{"epoch": 3, "arch": "resnet20", "state_dict": raw, "version": 2},
      **{"optimizer": state, "args": ARGS, "amp_scaler": {"scale": 65536.0}},
      **{"state_dict_ema": average, "metric": 71.5},
    },
    "'state_dict_ema', the moving average",
  ),
  "torchvision's references": (
    "model_10.pth",
    lambda raw, average, state: {
      **{"model": raw, "optimizer": state, "lr_scheduler": {"last_epoch": 3}},
      **{"epoch": 3, "args": ARGS, "scaler": {"scale": 65536.0}},
      "model_ema": {
        "n_averaged": state["state"][0]["step"],
        **behind("module.", average),
      },
    },
    "'model_ema', the moving average",
  ),
  "PyTorch's ImageNet example": (
    "checkpoint.pth.tar",
    lambda raw, average, state: {
      **{"epoch": 3, "arch": "resnet18", "optimizer": state},
      **{"state_dict": behind("module.", raw), "scheduler": {"step_size": 30}},
      "best_acc1": state["state"][0]["step"],
    },
    None,
  ),
  "Lightning": (
    "epoch=3-step=100.ckpt",
    lambda raw, average, state: {
      **{"epoch": 3, "global_step": 100, "optimizer_states": [state]},
      **{
        "pytorch-lightning_version": "2.5.0",
        "lr_schedulers": [],
        "loops": {},
      },
      "state_dict": behind("model._orig_mod.", raw)
      | {"criterion.weight": state["state"][0]["step"]},
      "callbacks": {"ModelCheckpoint": {"dirpath": "/x", "best_k_models": {}}},
      **{"hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1}},
    },
    None,
  ),
  "DINO": (
    "checkpoint.pth",
    lambda raw, average, state: {
      "student": behind("module.backbone.", raw),
      "teacher": behind("backbone.", average),
      **{"optimizer": state, "epoch": 3, "args": ARGS, "fp16_scaler": None},
      "dino_loss": {"center": state["state"][0]["step"]},
    },
    "'teacher', the moving average",
  ),
  "MoCo": (
    "moco_v2_200ep_pretrain.pth.tar",
    lambda raw, average, state: {
      "state_dict": behind("module.encoder_q.", raw)
      | behind("module.encoder_k.", average)
      | {"module.queue": state["state"][0]["step"]},
      **{"epoch": 3, "arch": "resnet50", "optimizer": state},
    },
    None,
  ),
  "SimSiam": (
    "checkpoint_0099.pth.tar",
    lambda raw, average, state: {
      "state_dict": behind("module.encoder.", raw)
      | {"module.predictor.0.weight": state["state"][0]["step"]},
      **{"epoch": 3, "arch": "resnet50", "optimizer": state},
    },
    None,
  ),
  "a state_dict": ("pytorch_model.bin", lambda raw, *_: raw, None),
  "akamaster": (
    "resnet20.th",
    lambda raw, *_: {"state_dict": behind("module.", raw), "best_prec1": 92.6},
    None,
  ),
}


@pytest.mark.deep
@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch(kind, zipped, state_dict, tmp_path, capsys):
  torch = pytest.importorskip("torch")
  name, save, said = SAVED[kind]
  headless = kind in ("DINO", "MoCo", "SimSiam")
  kept = {
    k: v
    for k, v in state_dict.items()
    if not (headless and k.startswith("linear"))
  }
  raw = {k: torch.tensor(v) for k, v in kept.items()}
  average = {k: v + 1 if v.ndim else v for k, v in raw.items()}
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], 0.1)
  state = optimizer.state_dict()
  state["state"][0] = {"step": torch.tensor(3.0), "momentum_buffer": None}
  torch.save(
    save(raw, average, state),
    tmp_path / name,
    _use_new_zipfile_serialization=zipped,
  )
  for ema in (True, False):
    found = load_pretrained(
      tmp_path / name, CASE.model, ema=ema, **dict(CASE.fields)
    )
    err = capsys.readouterr().err
    tensors = average if said and ema else raw
    expected = fr.from_torch(
      {k: v.numpy() for k, v in tensors.items()},
      CASE.network().clone(num_classes=0 if headless else 10),
    )
    assert_same(named_leaves(found.variables), named_leaves(expected))
    if said:
      assert (said if ema else "and not the average") in err


@pytest.mark.deep
def test_files_of_pytorch_are_written(state_dict, tmp_path):
  torch = pytest.importorskip("torch")
  for ending in files.PYTORCH:
    path = tmp_path / f"back{ending}"
    files.write(path, state_dict)
    back = torch.load(path, weights_only=True)
    assert_same({k: v.numpy() for k, v in back.items()}, state_dict)


@pytest.mark.deep
def test_flags_of_a_script_are_data_and_nothing_else(state_dict, tmp_path):
  """What else a pickle names is refused, also within the flags."""
  torch = pytest.importorskip("torch")

  class Touch:
    def __reduce__(self):
      return os.system, (f"touch {tmp_path}/owned",)

  tensors = {k: torch.tensor(v) for k, v in state_dict.items()}
  for args in (Touch(), argparse.Namespace(callback=Touch())):
    torch.save({"state_dict": tensors, "args": args}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"it names \w+\.system"):
      files.read(tmp_path / "x.pth")
  assert not (tmp_path / "owned").exists()
