"""train.py as a user runs it: what it prints, and how it ends."""

import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

import flax_resnet as fr
from flax_resnet.models.variables import initial_variables
from flax_resnet.weights import files
from tests.recipes import ROOT, write_tiny
import train as script


@pytest.fixture
def recipe(tmp_path, data_dir):
  """A config file of the tiny net on digits."""
  return write_tiny(tmp_path, data_dir)


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, script.main)


def one_sentence(err):
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert "Traceback" not in err
  return err


WRONG = {
  "weights that are not there": (
    ["--config.init_from=nope.safetensors"],
    "config.init_from: there is no weight file nope.safetensors",
  ),
  "weights that are none": (
    ["--config.init_from=train.py"],
    "config.init_from: weight file train.py has an unknown ending",
  ),
  "a folder of no weights": (
    ["--config.init_from=configs"],
    "config.init_from: folder configs is not a Flax checkpoint",
  ),
  "weights of another type": (
    ["--config.init_from=3"],
    "config.init_from is 3: use str or None",
  ),
  "a drawn trunk that is frozen": (
    ["--config.freeze_trunk=True"],
    "config: freeze_trunk is True and init_from None",
  ),
  "a misspelt key of the top": (
    ["--config.init_form=x.safetensors"],
    "config.init_form is unknown: did you mean 'init_from'?",
  ),
  "unknown flag": (["--confg=x"], "unrecognized|required|is not a flag"),
  "no such config": (["--config=nope.py"], "nope.py is not there"),
  "a folder as config": (["--config=configs"], "configs is not there"),
  "misspelt key": (
    ["--config.optim.learning_rat=1"],
    "config.optim.learning_rat is unknown: did you mean 'learning_rate'?",
  ),
  "misspelt section": (
    ["--config.optm.learning_rate=1"],
    "config.optm is unknown: did you mean 'optim'?",
  ),
  "key of a number": (["--config.seed.x=1"], "config.seed has no keys"),
  "a whole section": (["--config.optim=1"], "config.optim is a section"),
  "no value": (["--config.seed"], "--config.seed has no value"),
  "wrong type": (
    ["--config.optim.learning_rate=fast"],
    "config.optim.learning_rate is 'fast': use float",
  ),
  "a broken number": (
    ["--config.optim.learning_rate=nan"],
    "config.optim.learning_rate is 'nan': use float",
  ),
  "unknown schedule": (
    ["--config.optim.schedule=cosin"],
    "config.optim.schedule is 'cosin': use one of 'cosine', 'step'",
  ),
  "unknown model": (
    ["--config.model.name=cifar_resnet21"],
    "config.model: unknown model 'cifar_resnet21': did you mean 'cifar_resnet",
  ),
  "unknown shortcut": (
    ["--config.model.shortcut=skip"],
    "config.model: unknown shortcut 'skip': use one of identity, projection",
  ),
  "unknown data set": (
    ["--config.data.name=digit"],
    "config.data: unknown data set 'digit': did you mean 'digits'?",
  ),
  "unknown split": (
    ["--config.data.eval_split=dev"],
    "config.data: data set 'digits' has no split 'dev': use one of train, test",
  ),
  "data set not prepared": (
    ["--config.data.name=cifar100"],
    "'cifar100' is not prepared in .*: run 'python -m flax_resnet prepare cifa",
  ),
  "batch and devices": (
    ["--config.batch_size=60"],
    "batch_size is 60, which cannot be split evenly over 8 devices",
  ),
  "batch and data set": (
    ["--config.batch_size=2000"],
    "config.batch_size is 2000 and there are 1,437 examples to train on",
  ),
  "batch and groups": (
    ["--config.model.norm_group_size=48"],
    "norm_group_size is 48, which does not divide config.batch_size 64",
  ),
  "zero steps": (["--config.num_steps=0"], "config: the run has 0 steps"),
  "zero epochs": (["--config.num_epochs=0"], "config: the run has 0 steps"),
  "two lengths": (
    ["--config.num_steps=5", "--config.num_epochs=1"],
    "config: num_epochs is 1 and num_steps 5: give one",
  ),
  "never evaluated": (["--config.eval_every=0"], "config: eval_every is 0"),
  "several steps of images that change": (
    ["--config.steps_per_call=2", "--config.data.random_resized_crop=True"],
    "config.steps_per_call is 2, for which images must be the same",
  ),
  "negative seed": (["--config.seed=-1"], "config: seed is -1"),
  "colours": (["--config.augment.mean=(0.1,0.2)"], "mean has 2 numbers"),
  "classes": (["--config.model.num_classes=7"], "10 classes and the model 7"),
}


@pytest.mark.parametrize("flags", WRONG.values(), ids=WRONG)
def test_a_wrong_input_ends_with_one_sentence_and_code_2(
  recipe, tmp_path, run, flags
):
  flags, wanted = flags
  if not any(flag.startswith("--config=") for flag in flags):
    flags = [f"--config={recipe}", *flags]
  workdir = tmp_path / "run"
  code, _, err = run(*flags, "--workdir", workdir)
  assert code == 2
  assert re.search(wanted, one_sentence(err)), err
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("line", "wanted"),
  [
    ("config.optim.learning_rat = 1.0", "config.optim.learning_rat is unknown"),
    ("config.modl = 1", "config.modl is unknown: did you mean 'model'?"),
    (
      "config.model.shortcut = 'skip'",
      "unknown shortcut 'skip': use one of identity, ",
    ),
    ("config.model.dtype = 'float33'", "dtype is 'float33': use float32, "),
    ("del config.batch_size", "config.batch_size is missing"),
    ("config.model.norm_group_size = 'all'", "is 'all': use int or None"),
    ("raise KeyError('oops')", "fails with KeyError: 'oops'"),
    ("return 3", "does not return a ConfigDict"),
    ("x = (", "fails with SyntaxError: "),
  ],
)
def test_a_wrong_config_file_ends_with_one_sentence(
  tmp_path, data_dir, run, line, wanted
):
  path = tmp_path / "wrong.py"
  path.write_text(
    f"""
from tests.recipes import tiny


def get_config():
  config = tiny({data_dir!r})
  {line}
  return config
"""
  )
  workdir = tmp_path / "run"
  code, _, err = run(f"--config={path}", f"--workdir={workdir}")
  assert code == 2
  assert re.search(wanted, one_sentence(err)), err
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("name", "channels", "fields", "wanted"),
  [
    ("cifar_resnet20", 1, {}, "config.init_from: .*unexpected: layer1.1.bn1"),
    ("cifar_resnet8", 1, {"stage_features": (4, 8, 9)}, "of another shape: "),
    ("cifar_resnet8", 3, {}, "images have 1 channels and the weights want 3"),
  ],
)
def test_weights_of_another_network_end_with_one_sentence(
  recipe, tmp_path, run, name, channels, fields, wanted
):
  model = fr.create_model(name, **{"stage_features": (4, 8, 8), **fields})
  drawn = initial_variables(model, jax.random.key(0), (8, 8, channels))
  path = tmp_path / "weights.safetensors"
  files.write(path, fr.to_torch(drawn, model))
  code, out, err = run(
    *(f"--config={recipe}", f"--workdir={tmp_path / 'run'}"),
    f"--config.init_from={path}",
  )
  assert (code, out) == (2, "")
  assert re.search(wanted, one_sentence(err)), err
  assert err.startswith("error: config.init_from: ")
  assert not (tmp_path / "run").exists()


def snapshot(folder: pathlib.Path):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_what_a_workdir_refuses(recipe, tmp_path, run):
  workdir = tmp_path / "run"
  flags = [f"--config={recipe}", f"--workdir={workdir}"]
  code, out, _ = run(*flags)
  assert code == 0
  assert "finished after 4 steps" in out
  before = snapshot(workdir)

  # Another config.
  code, _, err = run(
    *flags,
    "--config.optim.learning_rate=0.5",
    "--config.model.norm_group_size=8",
  )
  assert code == 2
  assert "model.norm_group_size (there null, now 8)" in one_sentence(err)
  assert "optim.learning_rate (there " in err
  assert "seed" not in err
  assert snapshot(workdir) == before

  # A checkpoint of another model.
  (workdir / "config.json").unlink()
  before = snapshot(workdir)
  code, _, err = run(*flags, "--config.model.stage_features=(4,8,9)")
  assert code == 2
  assert "is not of this model and optimizer" in one_sentence(err)
  assert "params/head/kernel is float32[8, 10] instead of float32[9, 10]" in err
  assert snapshot(workdir) == before

  # A damaged config.json.
  (workdir / "config.json").write_text("{")
  code, _, err = run(*flags)
  assert code == 2
  assert "config.json is not JSON" in one_sentence(err)


def test_a_config_that_is_not_finite_is_refused(recipe, tmp_path, run):
  flags = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
  code, _, err = run(*flags, "--config.augment.mean=(1e999,)")
  assert code == 2
  assert "config.augment.mean is (inf,): use finite num" in one_sentence(err)
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(recipe, tmp_path, run, monkeypatch):
  (tmp_path / "file").write_text("here")
  for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
    code, _, err = run(f"--config={recipe}", f"--workdir={workdir}")
    assert code == 2
    assert "cannot be written" in one_sentence(err)
  assert (tmp_path / "file").read_text() == "here"

  # No permission; tests may run as root, whom permissions do not stop.
  monkeypatch.setattr(os, "access", lambda *_: False)
  code, _, err = run(f"--config={recipe}", f"--workdir={tmp_path / 'new'}")
  assert code == 2
  assert "is not writable" in one_sentence(err)
  assert not (tmp_path / "new").exists()


def start(recipe, workdir):
  """Starts train.py in a process of its own, on one device."""
  flags = [f"--config={recipe}", f"--workdir={workdir}"]
  more = ["--config.num_steps=60", "--config.checkpoint_every=5"]
  return subprocess.Popen(
    [sys.executable, ROOT / "train.py", *flags, *more],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def latest_checkpoint(workdir):
  steps = (workdir / "checkpoints").glob("[0-9]*")
  return max((int(path.name) for path in steps if path.suffix == ""), default=0)


def last_row(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  row = json.loads(text.splitlines()[-1])
  return {key: row[key] for key in ("step", "train/loss", "val/loss")}


def test_a_killed_process_continues_to_the_same_end(recipe, tmp_path):
  workdir = tmp_path / "run"
  for signum, code in (
    (signal.SIGKILL, -9),
    (signal.SIGTERM, 143),
    (signal.SIGINT, 130),
  ):
    before = latest_checkpoint(workdir)
    process = start(recipe, workdir)
    while latest_checkpoint(workdir) == before:
      assert process.poll() is None, process.communicate()
      time.sleep(0.02)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    if code > 0:
      assert "the same command continues" in err
      assert err.count("\n") == 1
    assert not (workdir / "summary.json").exists()

  process = start(recipe, workdir)
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  assert "continues after step" in out
  steps = [
    json.loads(line)["step"]
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert steps == list(range(2, 61, 2))

  whole = start(recipe, tmp_path / "whole")
  whole.communicate(timeout=300)
  assert last_row(workdir) == last_row(tmp_path / "whole")


def test_the_default_workdir_is_named_after_the_recipe(
  recipe, tmp_path, run, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, _, _ = run(f"--config={recipe}")
  assert code == 0
  assert (tmp_path / "runs" / "recipe" / "summary.json").exists()


def test_help_says_what_the_flags_do(run):
  code, out, _ = run("--help")
  assert code == 0
  assert "--config" in out
  assert "runs/<name of the config>" in " ".join(out.split())
