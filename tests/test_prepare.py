"""`prepare` downloads and writes a data set, or says what is missing."""

import functools
import importlib.util
import resource
import sys
import types

import pytest
import tensorflow_datasets as tfds

from flax_resnet import __main__ as verbs
from flax_resnet.data import preparation
from flax_resnet.data.decoding import decode
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.tfds import TFDSSource
from tests.data.images import encode, photograph, write_split_folder


@pytest.fixture
def prepare(call_main):
  return functools.partial(call_main, verbs.main, "prepare")


def test_prepare_digits(tmp_path, prepare):
  code, out, err = prepare("digits", "--data-dir", tmp_path)
  assert (code, err) == (0, "")
  assert out == f"{tmp_path}/digits/1.0.0: train 1,437, test 360\n"


def test_a_disk_that_is_full(tmp_path, prepare):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    code, _, err = prepare("digits", "--data-dir", tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert code == 2
  start = f"error: prepare digits: {tmp_path}/digits/1.0.0 cannot be written: "
  assert err.startswith(start)
  assert "File too large" in err


def test_without_tensorflow(tmp_path, monkeypatch, prepare):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, _, err = prepare("cifar10", "--data-dir", tmp_path)
  assert code == 2
  assert err == (
    "error: prepare cifar10: TFDS prepares data sets with TensorFlow, which is "
    "not installed: pip install 'flax_resnet[prepare]'\n"
  )


@pytest.fixture
def with_tensorflow(monkeypatch):
  """TFDS is asked as if TensorFlow were there; it needs it only later."""
  find = importlib.util.find_spec

  def found(name, *args):
    return True if name == "tensorflow" else find(name, *args)

  monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.fixture
def builder(monkeypatch, with_tensorflow):
  """A builder in place of TFDS's; it keeps what it is called with."""
  calls = []

  def download_and_prepare(**arguments):
    calls.append(arguments)
    if found.error is not None:
      raise found.error

  found = types.SimpleNamespace(
    MANUAL_DOWNLOAD_INSTRUCTIONS="manual_dir should contain\n  a.tar.\n",
    data_path="/data/set/1.0.0",
    info=types.SimpleNamespace(
      splits={"train": types.SimpleNamespace(num_examples=1234)}
    ),
    download_and_prepare=download_and_prepare,
    calls=calls,
    error=None,
  )
  monkeypatch.setattr(tfds, "builder", lambda name, data_dir: found)
  return found


def test_the_manual_folder_reaches_tfds(
  prepare, builder, tmp_path, monkeypatch
):
  (tmp_path / "archives").mkdir()
  monkeypatch.setenv("HOME", str(tmp_path))
  code, out, err = prepare("set", "--manual-dir", "~/archives")
  assert (code, out, err) == (0, "/data/set/1.0.0: train 1,234\n", "")
  (arguments,) = builder.calls
  config = arguments["download_config"]
  assert isinstance(config, tfds.download.DownloadConfig)
  assert config.manual_dir == str(tmp_path / "archives")
  assert arguments["file_format"] == tfds.core.FileFormat.ARRAY_RECORD
  assert prepare("set")[0] == 0
  assert builder.calls[1]["download_config"].manual_dir is None


@pytest.mark.parametrize("manual", [False, True])
def test_missing_archives_are_named(prepare, with_tensorflow, tmp_path, manual):
  """By the real TFDS, before it needs TensorFlow."""
  folder = tmp_path / "tfds" / "downloads" / "manual"
  flags = ["--data-dir", tmp_path / "tfds"]
  if manual:
    folder = tmp_path / "archives"
    folder.mkdir()
    flags += ["--manual-dir", folder]
  code, out, err = prepare("imagenet2012", *flags)
  assert code == 2
  assert err.startswith(
    f"error: prepare imagenet2012: archives are missing in {folder}, and"
  )
  assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar." in err
  assert "--manual-dir DIR" in err
  assert err.count("\n") == 1
  assert f"to {tmp_path / 'tfds' / 'imagenet2012'}" in out  # How much it is.


def test_an_archive_that_tensorflow_does_not_find(prepare, builder, tmp_path):
  # As tf.errors.NotFoundError, which is no OSError.
  builder.error = type("NotFoundError", (Exception,), {})("a.tar; No such file")
  code, _, err = prepare("set", "--manual-dir", tmp_path)
  assert code == 2
  assert "(manual_dir should contain a.tar): put them there" in err
  builder.error = KeyError("a mistake of TFDS")
  with pytest.raises(KeyError):
    prepare("set", "--manual-dir", tmp_path)


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (
      "--data-dir=file",
      "because CWD/file is not a folder: choose another",
    ),
    (
      "--data-dir=file/a",
      "because CWD/file is not a folder: choose another",
    ),
    ("--manual-dir=no", "the manual folder no is not there"),
    ("--manual-dir=file", "the manual folder file is not a folder"),
  ],
)
def test_wrong_folders(prepare, tmp_path, monkeypatch, flags, expected):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("here")
  code, out, err = prepare("digits", flags)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert expected.replace("CWD", str(tmp_path)) in err


@pytest.fixture
def photos(tmp_path):
  """A folder of small images, and one photograph of 90 x 120."""
  root = write_split_folder(tmp_path / "Photos 2")
  large = encode(photograph(90, 120), "JPEG")
  (root / "val" / "wild rose" / "large.jpg").write_bytes(large)
  return root


def test_pictures_of_a_folder(tmp_path, photos, prepare):
  flags = ("--max-side", 60, "--data-dir", tmp_path / "out")
  code, out, err = prepare(photos, *flags)
  assert (code, err) == (0, "")
  assert out == (
    f"{tmp_path}/out/photos_2_60/1.0.0: train 30, val 10\n"
    f"to read it: data.name=photos_2_60 data.data_dir={tmp_path}/out\n"
  )
  assert prepare(photos, *flags) == (0, out, "")
  source = TFDSSource("photos_2_60", "val", str(tmp_path / "out"))
  large = max((record["image"] for record in source), key=len)
  assert decode(large, 3).shape == (45, 60, 3)


def test_files_as_they_are(tmp_path, photos, prepare):
  flags = ("--name", "mine", "--data-dir", tmp_path)
  code, out, _ = prepare(photos, *flags)
  assert (code, out.splitlines()[0]) == (
    0,
    f"{tmp_path}/mine/1.0.0: train 30, val 10",
  )
  source = TFDSSource("mine", "val", str(tmp_path))
  files = {path.read_bytes() for path in (photos / "val").rglob("*.jpg")}
  assert {record["image"] for record in source} == files


def test_parts_of_a_folder_that_is_not_divided(tmp_path, photos, prepare):
  """Are those of the folder, in an order in which all classes are alike."""
  root = photos / "train"
  parts = {"train": "train[:80%]", "val": "train[80%:]"}
  splits = [f"--split={name}={part}" for name, part in parts.items()]
  code, out, _ = prepare(root, *splits, "--name=x", f"--data-dir={tmp_path}")
  assert code == 0
  assert out.startswith(f"{tmp_path}/x/1.0.0: train 24, val 6\n")
  for name, part in parts.items():
    source = FolderSource(root, part)
    copy = TFDSSource("x", name, str(tmp_path))
    assert [copy[i] for i in range(len(copy))] == [
      source[i] for i in range(len(source))
    ]


def test_columns_of_a_manifest(tmp_path, photos, prepare):
  images = sorted((photos / "val").rglob("*.jpg"))
  lines = [f"{image},{number % 2}" for number, image in enumerate(images)]
  table = tmp_path / "table.csv"
  table.write_text("\n".join(["file,kind", *lines]))
  code, out, err = prepare(
    table,
    f"--data-dir={tmp_path}",
    "--config.data.path_column=file",
    "--config.data.label_column=kind",
  )
  assert (code, err) == (0, "")
  assert out.startswith(f"{tmp_path}/table/1.0.0: train 10\n")


def test_a_set_of_tfds_made_smaller(tmp_path, prepare):
  code, out, err = prepare("digits", "--max-side=4", "--data-dir", tmp_path)
  assert (code, err) == (0, "")
  assert out.startswith(f"{tmp_path}/digits_4/1.0.0: train 1,437, test 360\n")
  source = TFDSSource("digits_4", "train", str(tmp_path))
  assert decode(source[0]["image"], 1).shape == (4, 4, 1)


def test_a_broken_image(tmp_path, photos, prepare):
  broken = photos / "train" / "anemone" / "a.jpg"
  broken.write_bytes(b"no image")
  code, _, err = prepare(photos, "--data-dir", tmp_path)
  assert code == 2
  assert err.count("\n") == 1
  assert err.startswith(f"error: prepare {photos}: {broken}: 8 bytes that")
  with pytest.warns(UserWarning, match=f"skipped {broken}: 8 bytes that"):
    code, out, _ = prepare(
      photos, "--data-dir", tmp_path, "--config.data.on_error=skip"
    )
  assert code == 0
  assert "train 30, val 10" in out


def test_progress_on_a_terminal(tmp_path, photos, prepare, monkeypatch):
  monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
  _, _, err = prepare(photos, "--data-dir", tmp_path)
  assert "0/40" in err
  assert "40/40" in err


def test_ctrl_c(tmp_path, photos, prepare, monkeypatch):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(preparation, "prepare_splits", interrupted)
  code, _, err = prepare(photos, "--data-dir", tmp_path)
  assert (code, err) == (130, "interrupted: the same command goes on with it\n")


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (("PHOTOS", "--max-side=0"), "max_side is 0: use 1 to 65,500 or None"),
    (
      ("PHOTOS", "--max-side=4", "--quality=101"),
      "quality is 101: use 1 to 100",
    ),
    (("PHOTOS", "--quality=50"), "--quality needs --max-side"),
    (("cifar10", "--quality=50"), "--quality needs --max-side"),
    (("cifar10", "--name=mine"), "--name needs --max-side"),
    (("cifar10", "--config.data.root=x"), "--config.data.root=x needs --max"),
    (("cifar10", "--split=a=train"), "--split needs --max-side"),
    (("PHOTOS", "--split=train[:80%]"), "--split is train[:80%]: give each a"),
    (("PHOTOS", "--split=a=no"), "has no folder 'no' for the split 'no'"),
    (("PHOTOS", "--manual-dir=x"), "--manual-dir needs the name of a TFDS set"),
    (("PHOTOS", "--name=a b"), "cannot be called 'a b'"),
    (("PHOTOS", "--config.data.rot=x"), "rot is unknown: did you mean 'root'?"),
    (("PHOTOS", "--config.seed=1"), "config.seed is unknown here"),
    (("./nothing",), "root is nothing, where there is no folder"),
    (("nothing.csv",), "root is nothing.csv, which is not there"),
    (("cifarr10", "--max-side=4"), "unknown data set 'cifarr10'"),
    (("folder", "--max-side=4"), "'folder' is a kind of data: give a path"),
  ],
)
def test_wrong_flags(tmp_path, photos, prepare, arguments, expected):
  code, out, err = prepare(
    *(photos if each == "PHOTOS" else each for each in arguments),
    *("--data-dir", tmp_path / "out"),
  )
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert expected in err


def test_several_labels(tmp_path, photos, prepare):
  table = tmp_path / "table.csv"
  image = next(photos.rglob("*.jpg"))
  table.write_text(f"path,label\n{image},a|b\n")
  code, _, err = prepare(
    table, f"--data-dir={tmp_path}", "--config.data.label_separator=|"
  )
  assert code == 2
  assert "have several labels each" in err
