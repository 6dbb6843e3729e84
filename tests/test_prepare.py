"""`prepare` downloads and writes a data set, or says what is missing."""

import functools
import importlib.util
import resource
import types

import pytest
import tensorflow_datasets as tfds

from flax_resnet import __main__ as verbs


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
