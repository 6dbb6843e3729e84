"""train.py as a user runs it: what it prints, and how it ends."""

import functools
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import jax
import pytest

import flax_resnet as fr
from flax_resnet import __main__, storage
from flax_resnet.models.variables import initial_variables
from flax_resnet.training import train
from flax_resnet.weights import files
from tests import recipes, runs
import train as script

SMALL = recipes.ONE_BLOCK | recipes.FEW_DIGITS


@pytest.fixture
def recipe(tmp_path, data_dir):
  """A config file of the net of one block on a fifth of the digits."""
  return recipes.write_tiny(tmp_path, data_dir, **SMALL)


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, script.main)


# The sentences of training, whose other tests ask for no more than a word.
WRONG = {
  "weights that are not there": (
    ["--config.init_from=nope.safetensors"],
    "config.init_from: there is no weight file nope.safetensors",
  ),
  "a drawn trunk that is frozen": (
    ["--config.freeze_trunk=True"],
    "config: freeze_trunk is True and init_from None",
  ),
  "a misspelt key of the top": (
    ["--config.init_form=x.safetensors"],
    "config.init_form is unknown: did you mean 'init_from'?",
  ),
  "unknown flag": (["--confg=x"], "--confg=x is not a flag"),
  "a flag of timm": (["--epochs", "3"], "--epochs is here --config.num_epochs"),
  "a flag of others": (
    ["--batch_size=3"],
    "--batch_size is here --config.batch_size=N, of all devices together",
  ),
  "seeds that are none": (["--seeds=0,x"], "--seeds is '0,x': give numbers"),
  "a seed twice": (["--seeds=1,1"], "--seeds is '1,1': give each seed once"),
  "no such recipe": (
    ["--config=digit"],
    "there is no recipe 'digit': did you mean 'digits'?",
  ),
  "no such config": (["--config=nope.py"], "nope.py is not there"),
  "a folder as config": (["--config=configs"], "configs is a folder without"),
  "a broken number": (
    ["--config.optim.learning_rate=nan"],
    "config.optim.learning_rate is 'nan': use float, more than 0",
  ),
  "unknown model": (
    ["--config.model.name=cifar_resnet21"],
    "config.model: unknown model 'cifar_resnet21': did you mean 'cifar_resnet",
  ),
  "batch and devices": (
    ["--config.batch_size=60"],
    "batch_size is 60, which cannot be split evenly over 8 devices",
  ),
  "batch and data set": (
    ["--config.batch_size=2000"],
    "config.batch_size is 2000 and there are 287 examples to train on",
  ),
  "batch and groups": (
    ["--config.model.norm_group_size=48"],
    "config.model.norm_group_size is 48, which does not divide "
    "config.batch_size 64",
  ),
  "zero steps": (["--config.num_steps=0"], "config: the run has 0 steps"),
  "two lengths": (
    ["--config.num_steps=5", "--config.num_epochs=1"],
    "config: num_epochs is 1 and num_steps 5: give one",
  ),
  "some hosts": (
    ["--num_processes=2"],
    "hosts: .* belong together: give all three",
  ),
  "an address without a port": (
    ["--coordinator=here", "--num_processes=2", "--process_id=0"],
    "hosts: --coordinator is here: use HOST:PORT",
  ),
  "a host too many": (
    ["--coordinator=h:1", "--num_processes=2", "--process_id=2"],
    "hosts: --process_id is 2 of 2: count from 0",
  ),
}


def assert_one_sentence(err, wanted):
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert "Traceback" not in err
  assert re.search(wanted, err), err


@pytest.mark.parametrize("flags", WRONG.values(), ids=WRONG)
def test_a_wrong_input_ends_with_one_sentence_and_code_2(
  recipe, tmp_path, run, flags
):
  flags, wanted = flags
  if not any(flag.startswith("--config=") for flag in flags):
    flags = [f"--config={recipe}", *flags]
  workdir = tmp_path / "run"
  code, out, err = run(f"--workdir={workdir}", *flags)
  assert (code, out) == (2, "")
  assert_one_sentence(err, wanted)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("channels", "stage_features", "wanted"),
  [
    (1, (4, 8), "unexpected: layer2.0.bn1"),
    (1, (5,), "different: layer1.0."),
    (3, (4,), "images have 1 channels and the weights want 3"),
  ],
)
def test_weights_of_another_network_end_with_one_sentence(
  recipe, tmp_path, run, channels, stage_features, wanted
):
  model = fr.create_model(
    "cifar_resnet8",
    stage_sizes=(1,) * len(stage_features),
    stage_features=stage_features,
  )
  drawn = initial_variables(model, jax.random.key(0), (8, 8, channels))
  path = tmp_path / "weights.safetensors"
  files.write(path, fr.to_torch(drawn, model))
  code, out, err = run(
    *(f"--config={recipe}", f"--workdir={tmp_path / 'run'}"),
    f"--config.init_from={path}",
  )
  assert (code, out) == (2, "")
  assert_one_sentence(err, f"^error: config.init_from: .*{wanted}")
  assert not (tmp_path / "run").exists()


def snapshot(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_a_run_is_named_after_its_recipe_and_refuses_another_one(
  recipe, tmp_path, run, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, out, err = run(f"--config={recipe}")
  assert (code, err) == (0, "")
  assert "finished after 4 steps" in out
  workdir = tmp_path / "runs" / "recipe"
  assert (workdir / "summary.json").exists()
  before = snapshot(workdir)
  code, _, err = run(f"--config={recipe}", "--config.optim.learning_rate=0.5")
  assert code == 2
  assert_one_sentence(err, r"optim.learning_rate \(there 0.1, now 0.5\)")
  assert snapshot(workdir) == before


def test_help_says_what_the_flags_do(run):
  code, out, _ = run("--help")
  assert code == 0
  assert "--config" in out
  assert "runs/<name of the recipe>" in " ".join(out.split())


def test_a_run_of_each_seed_by_the_verb(recipe, tmp_path, call_main):
  """The second call finds the first seed finished, and trains the others."""
  flags = ("train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
  code, out, err = call_main(__main__.main, *flags, "--seeds=3")
  assert (code, err) == (0, "")
  code, out, err = call_main(__main__.main, *flags, "--seeds=3,0,1")
  assert (code, err) == (0, "")
  assert "continues after step 4" in out
  top1 = [
    storage.read_json(tmp_path / "run" / f"seed{seed}" / "summary.json")
    for seed in (3, 0, 1)
  ]
  top1 = [100 * summary["val/top1"] for summary in top1]
  spread = statistics.stdev(top1)
  wanted = f"top1 {statistics.mean(top1):.2f}% +- {spread:.2f}% of 3 runs: "
  assert out.splitlines()[-1].startswith(wanted)
  assert storage.read_config(tmp_path / "run" / "seed3")["seed"] == 3


def test_the_config_of_a_run_is_a_recipe(recipe, tmp_path, run, monkeypatch):
  """Without a workdir it continues; with another one it is a new run."""
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "run"
  assert run(f"--config={recipe}", f"--workdir={workdir}")[0] == 0
  code, out, _ = run("--config=run")
  assert (code, "continues after step 4" in out) == (0, True)
  code, out, _ = run("--config=run/config.json", "--workdir=again")
  assert (code, "continues" in out) == (0, False)
  assert runs.rows_of(tmp_path / "again") == runs.rows_of(workdir)


@pytest.mark.parametrize(
  ("signum", "code"),
  [
    (signal.SIGKILL, -9),
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.deep),
  ],
)
def test_a_killed_process_continues_to_the_same_end(
  data_dir, tmp_path, mesh, capsys, signum, code
):
  """The rest, and the whole run, are trained in this process."""
  changes = {**SMALL, "num_steps": 60, "checkpoint_every": 5}
  recipe = recipes.write_tiny(tmp_path, data_dir, **changes)
  workdir = tmp_path / "run"
  one_device = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
  environ = {"PYTHONPATH": str(recipes.ROOT), "XLA_FLAGS": one_device}
  command = [sys.executable, recipes.ROOT / "train.py", f"--config={recipe}"]
  process = subprocess.Popen(
    [*command, f"--workdir={workdir}"],
    cwd=recipes.ROOT,
    env={**os.environ, **environ},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not storage.checkpoint_steps(workdir / "checkpoints"):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(signum)
  _, err = process.communicate(timeout=120)
  assert process.returncode == code, err
  # The lock of a process that is gone, however it went, locks nobody out.
  assert (workdir / ".lock").exists() == (signum == signal.SIGKILL)
  if code > 0:
    assert "the same command continues" in err
    assert err.count("\n") == 1
  assert not (workdir / "summary.json").exists()

  config = recipes.changed(recipes.tiny(data_dir), changes)
  train(config, workdir, mesh)
  assert "continues after step" in capsys.readouterr().out
  config.checkpoint_every = 60
  train(config, tmp_path / "whole", mesh)
  rows, whole = (runs.rows_of(tmp_path / name) for name in ("run", "whole"))
  assert [row["step"] for row in rows] == list(range(2, 61, 2))
  for row, wanted in zip(rows, whole, strict=True):
    # Which threads share a sum depends on the devices of a process.
    assert row["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-3)
  assert rows[-1]["val/loss"] == pytest.approx(whole[-1]["val/loss"], rel=1e-3)
