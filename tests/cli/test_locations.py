"""Which flags and keys take a URL, and of which schemes."""

import pytest

from tests.recipes import ROOT

TRAIN = f"train --config {ROOT}/configs/digits.py"
FOLDER = f"train --config {ROOT}/configs/folder.py --workdir run"
# Each flag and key that takes a path, with what the sentence calls it.
LOCAL = {
  "predict --workdir run x.png URL": "IMAGE",
  "export URL --workdir run": "OUT",
  "convert x.pth URL --model resnet18": "OUT",
  "inspect --model resnet18 --init --out URL": "--out",
  "report --workdir run --out URL": "--out",
  "check URL": "DIR",
  "prepare digits --data-dir URL": "--data-dir",
  "prepare digits --manual-dir URL": "--manual-dir",
}
IN_BUCKETS = {
  "train --config URL": "--config",
  "evaluate --weights x.pth --config URL": "--config",
  "predict --weights x.pth --config URL x.png": "--config",
  "check --config URL": "--config",
  "report --workdir run URL": "--workdir",
  f"{TRAIN} --workdir URL": "--workdir",
  f"{TRAIN} --workdir run --config.init_from=URL": "config.init_from",
  "evaluate --workdir URL": "--workdir",
  f"evaluate --weights URL --config {ROOT}/configs/digits.py": "--weights",
  "predict --workdir URL x.png": "--workdir",
  "predict --weights URL x.png": "--weights",
  "export out --workdir URL": "--workdir",
  "export out --weights URL": "--weights",
  "convert URL out --model resnet18": "IN|URL|TAG",
  "inspect --workdir run URL": "--workdir",
  f"{TRAIN} --workdir run --config.data.data_dir=URL": "config.data.data_dir",
  f"{FOLDER} --config.data.root=URL": "config.data.root",
  f"check --config {ROOT}/configs/folder.py --config.data.root=URL": (
    "config.data.root"
  ),
}
# Data that are not read from a bucket, and the command that copies them.
COPIED = {
  f"{TRAIN} --workdir run --config.data.data_dir=gs://b/tfds": (
    "data_dir is gs://b/tfds, and data of the kind 'digits' are read from a "
    "disk of this machine: copy them, 'gcloud storage cp -r gs://b/tfds .', and"
  ),
  f"{FOLDER} --config.data.root=s3://b/photos": (
    "root is s3://b/photos, and data of the kind 'folder' are read from a disk "
    "of this machine: copy them, 'aws s3 sync s3://b/photos .', and set root"
  ),
  f"{FOLDER} --config.data.name=manifest --config.data.root=s3://b/x/all.csv": (
    "root is s3://b/x, and data of the kind 'manifest' are read from a disk of "
    "this machine: copy them, 'aws s3 sync s3://b/x .'"
  ),
  f"{FOLDER} --config.data.name=npz --config.data.root=gs://b/x.npz": (
    "root is gs://b/x.npz, and data of the kind 'npz' are read from a disk of "
    "this machine: copy them, 'gcloud storage cp gs://b/x.npz .'"
  ),
  f"check --config {ROOT}/configs/folder.py --config.data.root=gs://b/photos": (
    "config.data: root is gs://b/photos, and data of the kind 'folder' are"
  ),
}


@pytest.mark.parametrize(
  ("arguments", "name", "url"),
  [
    *((*each, "ftp://host/path") for each in (LOCAL | IN_BUCKETS).items()),
    *((*each, "gs://bucket/path") for each in LOCAL.items()),
    (f"{TRAIN} --workdir URL", "--workdir", "file:///run"),
    (f"{TRAIN} --workdir URL", "--workdir", "GS://bucket/path"),
  ],
)
def test_other_urls_are_refused_and_nothing_is_written(
  call, tmp_path, monkeypatch, arguments, name, url
):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(*arguments.replace("URL", url).split())
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert err.startswith((f"error: {name} ", f"error: argument {name}: ")), err
  assert url in err
  assert "a path of this machine" in err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "wanted"), COPIED.items())
def test_data_that_are_to_be_copied(
  call, tmp_path, monkeypatch, arguments, wanted
):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(*arguments.split())
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert wanted in err
  assert not list(tmp_path.iterdir())
