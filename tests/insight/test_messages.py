"""What `inspect` says of wrong inputs."""

import shutil

import pytest

CASES = {
  "": "give either --workdir or --model",
  "--model resnet18": "--model needs --init",
  "--workdir {empty} --init": "--init is for --model",
  "--workdir {empty}": "is not a workdir: it has no config.json",
  "--workdir {empty} {empty}": "is not a workdir",
  "--workdir {run} --out {empty}": "--out is for several runs",
  "--workdir {unsaved}": "has no checkpoint yet",
  "--workdir {damaged}": "is damaged",
  "--workdir {run} {unevaluated}": "has not been evaluated yet",
  "--model resnet19 --init": "unknown model 'resnet19'",
  "--model cifar_plain20 --init": "cifar_plain20 has no skips",
  "--model resnet18 --init --images 0": "--images is 0: use 1 or more",
  "--model cifar_resnet8 --init --out {file}": "inspect: ",
  "--study lesions": "--study needs --workdir or --weights",
  "--study layers --workdir {run}": "invalid choice: 'layers'",
  "--study lesions --workdir {run} --init": "--init is for --model",
  "--study lesions --workdir {run} --images 0": "--images is 0: use 1 or more",
  "--study lesions --workdir {run} {run}": "two networks are called run",
  "--study lesions --workdir {run} --config x.py": "a run says its own",
  "--study lesions --workdir {run} --model resnet18": "the one network of",
  "--study lesions --weights a.safetensors": "--weights needs --config",
  "--study lesions --workdir {run} --config.seeds=1": "config.seeds",
  "--study lesions --workdir {empty}": "is not a workdir",
  "--study lesions --workdir {run} --out {file}": "inspect: ",
  "--study lesions --workdir {unsaved}": "has no checkpoint yet",
  "--study paths --workdir {run}": "give a residual one",
  "--study residuals --workdir {run}": "adds no x to its F(x)",
  "--workdir {run} --weights a.safetensors": "--weights needs --study",
  "--workdir {run} --config x.py": "--config needs --study",
  "--workdir {run} --config.seed=1": "--config.seed=1 needs --study",
}


@pytest.mark.parametrize("arguments", CASES)
def test_wrong_inputs(inspect, runs, tmp_path, arguments):
  paths = {name: tmp_path / name for name in ("empty", "file")}
  paths["empty"].mkdir()
  paths["file"].touch()
  for name, missing in (
    ("run", ()),
    ("damaged", ()),
    ("unsaved", ("checkpoints",)),
    ("unevaluated", ("metrics.jsonl",)),
  ):
    if f"{{{name}}}" in arguments:
      paths[name] = shutil.copytree(
        runs / "none", tmp_path / name, ignore=shutil.ignore_patterns(*missing)
      )
  for file in paths.get("damaged", tmp_path).glob("checkpoints/4/state/d/*"):
    file.write_bytes(file.read_bytes()[::-1])
  code, out, err = inspect(*arguments.format(**paths).split())
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert CASES[arguments] in err
