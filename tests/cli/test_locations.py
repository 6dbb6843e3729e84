"""Which flags and keys take a URL, and of which schemes."""

import pytest

from tests.recipes import ROOT

TRAIN = f"train --config {ROOT}/configs/digits.py"
FOLDER = f"train --config {ROOT}/configs/folder.py --workdir run"
# Each flag and key that takes a path, with what the sentence calls it.
LOCAL = {
  "train --config URL": "--config",
  f"{TRAIN} --workdir run --config.data.data_dir=URL": "config.data.data_dir",
  f"{FOLDER} --config.data.root=URL": "config.data.root",
  "evaluate --weights x.pth --config URL": "--config",
  "predict --workdir run x.png URL": "IMAGE",
  "predict --weights x.pth --config URL x.png": "--config",
  "export URL --workdir run": "OUT",
  "convert x.pth URL --model resnet18": "OUT",
  "inspect --model resnet18 --init --out URL": "--out",
  "check URL": "DIR",
  "check --config URL": "--config",
  f"check --config {ROOT}/configs/folder.py --config.data.root=URL": (
    "config.data.root"
  ),
  "prepare digits --data-dir URL": "--data-dir",
  "prepare digits --manual-dir URL": "--manual-dir",
}
IN_BUCKETS = {
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
