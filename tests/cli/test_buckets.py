"""Verbs that read runs and weights in a bucket, one in memory."""

import shutil

from PIL import Image
import pytest

from flax_resnet import bucket, storage
from flax_resnet.weights import files, remote
from tests.buckets import copy_run, MemoryBucket

RUN = "gs://bucket/runs/digits"
WEIGHTS = "s3://bucket/resnet20.safetensors"


@pytest.fixture
def memory(monkeypatch, workdir, weights):
  memory = MemoryBucket()
  monkeypatch.setattr(bucket, "open_filesystem", lambda url: memory)
  copy_run(workdir, RUN)
  memory.pipe_file(WEIGHTS.removeprefix("s3://"), weights.read_bytes())
  yield memory
  remote._fetch.cache_clear()
  remote._copy_of_run.cache_clear()


@pytest.fixture
def images(tmp_path):
  path = tmp_path / "image.png"
  Image.new("L", (8, 8), 99).save(path)
  return [path]


def test_evaluate_and_predict_read_what_is_there(call, memory, workdir, images):
  for verb in (
    ("evaluate", "--checkpoint", "4"),
    ("predict", *images, "--checkpoint", "best"),
  ):
    code, out, err = call(*verb, "--workdir", RUN)
    assert (code, err) == (0, "")
    _, wanted, _ = call(*verb, "--workdir", workdir)
    assert out == wanted.replace(str(workdir), RUN)
  assert not memory.writes or memory.names(RUN)


def test_weights_are_read_and_converted(call, memory, tmp_path, weights):
  name = "--model=cifar_resnet20"
  out = tmp_path / "out"
  code, said, err = call("convert", WEIGHTS, out, name)
  assert (code, err) == (0, "") and said.startswith(f"{out}: cifar_resnet20")
  step = f"{RUN}/checkpoints/4"
  for place in (RUN, step):
    target = tmp_path / f"of-{len(place)}.safetensors"
    code, _, err = call("convert", place, target)
    assert (code, err) == (0, "")
    assert len(files.read(target)) > 9


@pytest.mark.deep
def test_export_and_inspect(call, memory, tmp_path, workdir):
  code, out, err = call("export", tmp_path / "out", "--workdir", RUN)
  assert (code, err) == (0, "") and out
  before = set(memory.names(RUN))
  code, out, err = call("inspect", "--workdir", RUN, "--images", "8")
  assert (code, err) == (0, "")
  written = {line.removeprefix(f"{RUN}/") for line in out.splitlines()}
  assert "inspect.json" in written
  assert set(memory.names(RUN)) - before == written


def test_the_config_of_a_run_is_a_recipe(call, memory, weights, tmp_path):
  for place in (RUN, f"{RUN}/config.json"):
    code, out, err = call("check", "--config", place, "--json")
    assert err == "" or err.startswith("error: check: duplicates"), err
    assert '"splits"' in out
  # Its own workdir is where it goes on.
  code, out, err = call("train", "--config", RUN)
  assert (code, err) == (0, "")
  assert "continues after step 4" in out and memory.names(RUN)
  code, _, err = call("train", "--config", "gs://bucket/none")
  assert (code, err.count("\n")) == (2, 1)
  assert err.startswith("error: --config: gs://bucket/none holds no config.jso")


@pytest.mark.deep
def test_a_report_stays_in_the_workdir(call, memory, tmp_path):
  code, out, err = call("report", "--workdir", RUN)
  assert (code, err) == (0, "")
  assert out.splitlines()[-1] == f"{RUN}/report.html"
  assert "</html>" in memory.text(f"{RUN}/report.html")
  out = tmp_path / "page.html"
  code, said, err = call("report", "--workdir", RUN, "--out", out)
  assert (code, err) == (0, "") and said.splitlines()[-1] == str(out)
  assert out.exists()


def test_a_damaged_checkpoint_is_passed_over(call, memory, workdir, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  (step,) = storage.checkpoint_steps(copy / "checkpoints")
  shutil.copytree(copy / f"checkpoints/{step}", copy / "checkpoints/9")
  copy_run(copy, f"{RUN}2")
  memory.pipe_file(f"{RUN[5:]}2/checkpoints/9/state/_METADATA", b"")
  with pytest.warns(UserWarning, match="is damaged: .*: that of step 4 is"):
    code, _, err = call("evaluate", "--workdir", f"{RUN}2", "--json")
  assert (code, err) == (0, "")


def test_one_that_is_replaced_while_it_is_read(memory, workdir):
  """The run in progress has removed it: the newest is that of the next."""
  asked = []

  def before(method, path):
    if method == "get_file" and "/4/state" in path and not asked:
      asked.append(path)
      raise FileNotFoundError(path)

  memory.before = before
  folder = files.find_checkpoint(remote.fetch_run(RUN))
  assert asked and storage.damage(folder) is None
  remote._copy_of_run.cache_clear()

  def always(method, path):
    if method == "get_file":
      raise FileNotFoundError(path)

  memory.before = always
  with pytest.raises(OSError, match="changes while it is read: try again"):
    remote.fetch_run(RUN)


def test_what_has_changed_is_fetched_again(memory, weights):
  first = remote.fetch(WEIGHTS)
  asked = []
  memory.before = lambda method, path: asked.append(method)
  assert remote.fetch(WEIGHTS) == first
  assert "get_file" not in asked
  memory.pipe_file(WEIGHTS.removeprefix("s3://"), bytes(weights.stat().st_size))
  assert remote.fetch(WEIGHTS).read_bytes()[:9] == bytes(9)


CASES = {
  "evaluate --workdir gs://bucket/none": (
    "gs://bucket/none is not a workdir: it has no config.json"
  ),
  "evaluate --workdir {run} --checkpoint 7": (
    "--workdir: there is no checkpoint '7' in {run}/checkpoints: use best, or "
    "one of 4"
  ),
  "predict {weights} --weights gs://bucket/none": (
    "there are no weights at gs://bucket/none"
  ),
  "predict {weights} --weights gs://bucket/../x": (
    "gs://bucket/../x is no URL of a folder"
  ),
  "convert gs://bucket/none.pth {out} --model resnet18": (
    "convert gs://bucket/none.pth: there are no weights at"
  ),
}


@pytest.mark.parametrize("arguments", CASES)
def test_wrong_urls(call, memory, weights, tmp_path, arguments):
  paths = {"run": RUN, "weights": weights, "out": tmp_path / "out"}
  code, out, err = call(*arguments.format(**paths).split())
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert CASES[arguments].format(**paths) in err


@pytest.mark.parametrize(
  ("answer", "wanted"),
  [
    (PermissionError("no"), "access to gs://bucket/runs/digits is denied"),
    (FileNotFoundError("x"), "there is no bucket gs://bucket"),
    (OSError("500"), "gs://bucket/runs/digits does not answer (OSError: 500)"),
  ],
)
def test_what_the_server_says(call, memory, monkeypatch, answer, wanted):
  monkeypatch.setattr(bucket, "PATIENCE", 0)

  def before(method, path):
    raise answer

  memory.before = before
  code, out, err = call("evaluate", "--workdir", RUN)
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert err.startswith(f"error: --workdir: {wanted}")
