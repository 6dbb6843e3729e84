"""inspect: the numbers and the pictures of runs and of untrained networks."""

import functools
import json

from PIL import Image
import pytest

from flax_resnet import __main__ as verbs
from flax_resnet.training import steps
from flax_resnet.training import train
from flax_resnet.training.setup import prepare
from flax_resnet.training.state import count_parameters


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, verbs.main)


def is_picture(path):
  with Image.open(path) as picture:
    colours = picture.convert("RGB").getcolors(1 << 24)
  assert len(colours) > 20
  assert path.with_suffix(".svg").read_text().rstrip().endswith("</svg>")


def test_a_run_is_inspected(run, config, tmp_path, mesh):
  config.update(num_steps=20, log_every=20, eval_every=20, checkpoint_every=20)
  workdir = tmp_path / "run"
  summary = train(config, workdir, mesh)
  code, out, err = run("inspect", "--workdir", workdir, "--images", 32)
  assert (code, err) == (0, "")
  report = json.loads((workdir / "inspect.json").read_text())
  assert report["step"] == 20
  assert report["images"] == 32
  blocks = [block["name"] for block in report["after"]["blocks"]]
  assert blocks == [f"stage{n}_block1" for n in (1, 2, 3)]
  assert report["after"]["blocks"] != report["before"]["blocks"]
  confusion = report["mistakes"]["confusion"]
  assert sum(map(sum, confusion)) == 360
  right = sum(confusion[n][n] for n in range(10))
  assert right / 360 == pytest.approx(summary["val/top1"])
  pictures = ("confusion", "gradients", "mistakes", "residuals", "responses")
  for name in pictures:
    assert f"inspect_{name}.png" in out
    is_picture(workdir / f"inspect_{name}.png")
  assert not list(workdir.glob("*partial*"))


def test_a_plain_run_has_no_picture_of_residuals(run, config, tmp_path, mesh):
  config.model.shortcut = "none"
  train(config, tmp_path / "run", mesh)
  code, out, err = run("inspect", "--workdir", tmp_path / "run")
  assert (code, err) == (0, "")
  assert "inspect_gradients.png" in out
  assert "residuals" not in out


def test_untrained_networks_are_inspected(run, tmp_path):
  code, _, err = run(
    *("inspect", "--model", "cifar_resnet8", "cifar_resnet20", "--init"),
    *("--out", tmp_path, "--images", 4),
  )
  assert (code, err) == (0, "")
  report = json.loads((tmp_path / "inspect.json").read_text())
  assert set(report["nets"]) == {"cifar_resnet8", "cifar_resnet20"}
  nets = report["nets"]["cifar_resnet20"]
  assert set(nets) == {
    f"{kind}, {norm}"
    for kind in ("residual", "plain")
    for norm in ("BatchNorm", "no BatchNorm")
  }
  assert all(len(net["blocks"]) == 9 for net in nets.values())
  is_picture(tmp_path / "inspect_gradients.png")


def test_runs_are_compared(run, config, tmp_path, mesh):
  top1, sizes = {}, {}
  for shortcut in ("none", "projection"):
    config.model.shortcut = shortcut
    top1[shortcut] = train(config, tmp_path / shortcut, mesh)["val/top1"]
    state = prepare(config.to_dict(), mesh).initial_state()
    sizes[shortcut] = count_parameters(state)
  code, out, err = run(
    *("inspect", "--workdir", tmp_path / "none", tmp_path / "projection"),
    *("--out", tmp_path / "out", "--images", 32),
  )
  assert (code, err) == (0, "")
  runs = json.loads((tmp_path / "out" / "inspect.json").read_text())["runs"]
  for shortcut in top1:
    row = runs[shortcut]
    assert row["shortcut"] == shortcut
    assert row["val_error"] == 1 - top1[shortcut]
    assert row["parameters"] == sizes[shortcut]
    printed = next(x for x in out.splitlines() if x.startswith(shortcut))
    assert printed.split()[1:5] == [
      *("cifar_resnet8", shortcut, f"{sizes[shortcut]:,}", "4")
    ]
    assert printed.endswith(f"{1 - top1[shortcut]:.2%}")
    # As inspecting that run alone finds it.
    run("inspect", "--workdir", tmp_path / shortcut, "--images", 32)
    alone = json.loads((tmp_path / shortcut / "inspect.json").read_text())
    for moment in ("before", "after"):
      assert row[moment]["images"] == 32
      assert row[moment]["blocks"] == alone[moment]["blocks"]
  more = sizes["projection"] - sizes["none"]
  # 1x1 convolutions and BatchNorm, from 4 to 8 channels and from 8 to 8.
  assert more == 4 * 8 + 2 * 8 + 8 * 8 + 2 * 8
  for name in ("curves", "gradients", "residuals", "responses"):
    assert f"inspect_{name}.svg" in out
    picture = (tmp_path / "out" / f"inspect_{name}.svg").read_text()
    assert "cifar_resnet8 on digits, step 4" in picture  # Of its title.
    is_picture(tmp_path / "out" / f"inspect_{name}.png")


def strict_json(path):
  """Returns what a reader finds who takes JSON by its letter."""

  def refuse(token):
    raise AssertionError(f"{token} is not JSON")

  return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def diverged(config, tmp_path, mesh, monkeypatch):
  """A run at a rate at which its parameters end as NaN, and nobody looks."""
  monkeypatch.setattr(faults, "settle", lambda before, after, *_: after)
  config.model.norm = "none"
  config.optim.learning_rate = 1e10
  train(config, tmp_path / "diverged", mesh)
  return tmp_path / "diverged"


def test_what_is_not_finite_is_null_and_said_in_the_pictures(
  run, config, diverged, tmp_path, mesh
):
  config.optim.learning_rate = 1e-3
  train(config, tmp_path / "sound", mesh)
  code, _, err = run(
    *("inspect", "--workdir", tmp_path / "sound", diverged),
    *("--out", tmp_path / "out", "--images", 32),
  )
  assert (code, err) == (0, "")
  runs = strict_json(tmp_path / "out" / "inspect.json")["runs"]
  assert runs["diverged"]["after"]["blocks"][0]["gradient"] is None
  assert runs["sound"]["after"]["blocks"][0]["gradient"] > 0
  for name in ("gradients", "residuals", "responses"):
    text = (tmp_path / "out" / f"inspect_{name}.svg").read_text()
    assert "<!-- diverged (not finite) -->" in text, name
    assert "sound (" not in text, name


def test_a_diverged_run_is_inspected(run, diverged):
  code, _, err = run("inspect", "--workdir", diverged, "--images", 32)
  assert (code, err) == (0, "")
  report = strict_json(diverged / "inspect.json")
  assert report["after"]["blocks"][0]["gradient"] is None
  for name, label in (
    ("gradients", "whole"),
    ("residuals", "after training"),
    ("responses", "after training"),
  ):
    text = (diverged / f"inspect_{name}.svg").read_text()
    assert f"<!-- {label} (not finite) -->" in text, name
  text = (diverged / "inspect_mistakes.svg").read_text()
  assert "(not finite) -->" in text
  assert "nan%" not in text


def test_plain_runs_alone_have_no_residuals(run, config, tmp_path, mesh):
  config.model.shortcut = "none"
  config.log_every = 100  # No row of training: curves of evaluations alone.
  workdirs = tmp_path / "a", tmp_path / "b"
  for workdir in workdirs:
    train(config, workdir, mesh)
  code, out, err = run("inspect", "--workdir", *workdirs, "--out", tmp_path)
  assert (code, err) == (0, "")
  assert "inspect_gradients.png" in out
  assert "residuals" not in out


def test_runs_of_the_same_name_are_told_apart(run, config, tmp_path, mesh):
  workdirs = tmp_path / "a" / "run", tmp_path / "b" / "run"
  for workdir in workdirs:
    train(config, workdir, mesh)
  code, _, _ = run("inspect", "--workdir", *workdirs, "--out", tmp_path)
  assert code == 0
  runs = json.loads((tmp_path / "inspect.json").read_text())["runs"]
  assert list(runs) == ["a/run", "b/run"]


def test_images_that_are_no_multiple_of_the_groups(run, config, tmp_path, mesh):
  config.model.norm_group_size = 32
  train(config, tmp_path / "run", mesh)
  workdir = tmp_path / "run"
  code, _, err = run("inspect", "--workdir", workdir, "--images", 48)
  assert (code, err.count("\n")) == (2, 1)
  assert "48 images are no multiple of 32, the norm_group_size of" in err
  assert not list(workdir.glob("inspect*"))
  assert run("inspect", "--workdir", workdir, "--images", 64)[0] == 0


def test_wrong_inputs_of_inspect(run, tmp_path):
  for arguments, message in (
    ((), "give either --workdir or --model"),
    (("--model", "resnet18"), "--model needs --init"),
    (("--workdir", tmp_path, "--init"), "--init is for --model"),
    (("--workdir", tmp_path), "is not a workdir: it has no config.json"),
    (("--workdir", tmp_path, tmp_path), "is not a workdir"),
    (("--model", "resnet19", "--init"), "unknown model 'resnet19'"),
    (("--model", "cifar_plain20", "--init"), "cifar_plain20 has no skips"),
    (("--model", "resnet18", "--init", "--images", 0), "--images is 0"),
  ):
    code, _, err = run("inspect", *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
