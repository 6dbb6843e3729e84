"""Workdirs in buckets: what is there at any time, and who may write.

The bucket is one in memory; `tests/test_buckets.py` has servers.
"""

import contextlib
import json
import pathlib
import shutil
import threading

import pytest

from flax_resnet import bucket, storage
from flax_resnet.errors import InputError, RunError
from flax_resnet.training import bucket_workdir, lease, train
from flax_resnet.training.bucket_workdir import BucketWorkdir
from flax_resnet.training.workdir import opened
from tests import recipes, runs
from tests.buckets import kill_at, Killed, MemoryBucket

URL = "gs://bucket/runs/a"


@pytest.fixture
def memory(monkeypatch):
  files = MemoryBucket()
  monkeypatch.setattr(bucket, "open_filesystem", lambda url: files)
  monkeypatch.setattr(lease, "SECONDS", 0.05)
  # What is written when is up to the test.
  monkeypatch.setattr(lease, "RENEW_SECONDS", 1000)
  monkeypatch.setattr(bucket_workdir, "_LOOK_SECONDS", 1000)
  return files


def save(path, step, keep=2):
  """Writes a checkpoint as Orbax does, and removes those that are older."""
  partial = path / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
  (partial / "state" / "d").mkdir(parents=True)
  (partial / "about").mkdir()
  (partial / "state" / "d" / "array").write_text(f"array {step}")
  (partial / "about" / "metadata").write_text("{}")
  storage.write_digests(partial / "state")
  partial.rename(path / "checkpoints" / str(step))
  for old in storage.checkpoint_steps(path / "checkpoints")[keep:]:
    shutil.rmtree(path / "checkpoints" / str(old))


def log(path, step):
  rows = path / "metrics.jsonl"
  lines = rows.read_text().splitlines() if rows.exists() else []
  lines = [line for line in lines if json.loads(line)["step"] < step]
  lines.append(json.dumps({"step": step}))
  rows.write_text("\n".join(lines) + "\n")


def toy_run(last=6, every=2):
  """Does what a run does, to a workdir in a bucket."""
  with opened(URL) as workdir:
    path = workdir.path
    with workdir.locked():
      (path / "config.json").write_text('{"seed": 0}')
      first = max(storage.checkpoint_steps(path / "checkpoints"), default=0) + 1
      for step in range(first, last + 1):
        log(path, step)
        if step % every == 0:
          workdir.flush()
          save(path, step)
      workdir.flush()
      (path / "summary.json").write_text('{"finished": true}')


def assert_sound(memory):
  """Asserts what holds of a bucket at any time; returns the newest step."""
  names = memory.names(URL)
  steps = bucket.complete_steps(names)
  for step in steps:
    found = set(bucket.files_of_step(names, step))
    folder = f"checkpoints/{step}"
    for file in ("state/d/array", "state/digests.json", "about/metadata"):
      assert f"{folder}/{file}" in found
    text = memory.text(f"{URL}/{folder}/state/d/array")
    assert text == f"array {step}"
  newest = max(steps, default=0)
  rows = []
  if "metrics.jsonl" in names:
    lines = memory.text(f"{URL}/metrics.jsonl").splitlines()
    rows = [json.loads(line)["step"] for line in lines]
  assert rows == list(range(1, len(rows) + 1))
  assert len(rows) >= newest
  if steps:
    assert "config.json" in names
  if "summary.json" in names:
    assert newest == 6
  return newest


FINISHED = [
  *(f"checkpoints/{step}/{file}" for step in (4, 6) for file in (
    "about/metadata", "commit_success.txt", "state/d/array",
    "state/digests.json",
  )),
  *("config.json", "lease/{}", "metrics.jsonl", "summary.json"),
]  # fmt: skip


def test_a_finished_run_is_all_there(memory):
  toy_run()
  assert memory.names(URL) == [name.format(1) for name in FINISHED]
  assert assert_sound(memory) == 6
  # And once more: nothing is to be done but to take the lease.
  toy_run()
  assert memory.names(URL) == [name.format(2) for name in FINISHED]


def test_a_kill_at_any_write_costs_one_checkpoint(memory, capsys):
  """For each of them: what is there is sound, and an empty disk goes on."""
  toy_run()
  writes, before = memory.writes, 0
  assert writes > 20
  for number in range(writes):
    memory.store.clear()
    kill_at(memory, number)
    with pytest.raises(Killed):
      toy_run()
    step = assert_sound(memory)
    assert step >= before  # The later the kill, the more is there.
    before = step
    memory.before = lambda method, path: None
    held = any(name.startswith("lease") for name in memory.names(URL))
    shutil.rmtree(bucket.local_path(URL))
    toy_run()
    wanted = {name.format(2 if held else 1) for name in FINISHED}
    # One that was about to be removed stays, as in any workdir.
    rest = set(memory.names(URL)) - wanted
    assert all(name.startswith("checkpoints/2/") for name in rest)
    assert rest == set() or number > writes - 10
    assert wanted <= set(memory.names(URL))
    assert assert_sound(memory) == 6
  assert before == 6
  out = capsys.readouterr().out
  assert f"{URL} is in use by process " in out
  assert "is gone: its lease is taken over\n" in out


def test_a_longer_run_is_not_finished(memory):
  toy_run(last=2)
  assert "summary.json" in memory.names(URL)
  with opened(URL) as workdir, workdir.locked():
    (workdir.path / "summary.json").unlink()
    workdir._sync(files=True)
    assert "summary.json" not in memory.names(URL)
    (workdir.path / "summary.json").write_text("{}")


def test_a_row_that_is_being_written_is_left_out(memory):
  with opened(URL) as workdir, workdir.locked():
    (workdir.path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    workdir._sync(files=True)
    assert memory.text(f"{URL}/metrics.jsonl") == '{"step": 1}\n'


def test_what_is_temporary_or_set_aside(memory):
  with opened(URL) as workdir, workdir.locked():
    save(workdir.path, 2)
    workdir.flush()
    folder = workdir.path / "checkpoints"
    (folder / "2").rename(folder / "damaged-2")
    for name in ("4.orbax-checkpoint-tmp", "tensorboard"):
      (folder.parent / name).mkdir()
      (folder.parent / name / "file").write_text("")
    (workdir.path / "curves.partial.png").write_text("")
    workdir._sync(files=True)
    names = memory.names(URL)
    assert [n for n in names if not n.startswith("lease")] == [
      "checkpoints/damaged-2/about/metadata",
      "checkpoints/damaged-2/state/d/array",
      "checkpoints/damaged-2/state/digests.json",
      "tensorboard/file",
    ]


def test_what_a_killed_run_has_half_copied_is_removed(memory):
  toy_run()
  folder = bucket.Folder(URL)
  folder.write("checkpoints/5/state/half", b"")
  folder.remove(["checkpoints/4/commit_success.txt"])
  with opened(URL) as workdir:
    assert storage.checkpoint_steps(workdir.path / "checkpoints") == [6]
    with workdir.locked():
      assert bucket.complete_steps(memory.names(URL)) == [6]
      assert not any("checkpoints/5" in name for name in memory.names(URL))


def test_what_was_cut_short_is_written_again(memory, monkeypatch):
  put, cut = MemoryBucket.put_file, []

  def cut_once(self, lpath, rpath, **kwargs):
    if rpath.endswith("state/d/array") and not cut:
      cut.append(rpath)
      self.pipe_file(rpath, b"")
    else:
      put(self, lpath, rpath, **kwargs)

  monkeypatch.setattr(MemoryBucket, "put_file", cut_once)
  toy_run()
  assert cut and assert_sound(memory) == 6


def test_a_copy_that_differs_has_no_marker(memory, monkeypatch):
  def cut(self, lpath, rpath, **kwargs):
    self.pipe_file(rpath, b"")

  monkeypatch.setattr(MemoryBucket, "put_file", cut)
  with (
    pytest.raises(OSError, match="checkpoints/2 is not as it was written: "),
    opened(URL) as workdir,
    workdir.locked(),
  ):
    save(workdir.path, 2)
    workdir.flush()
  assert not bucket.complete_steps(memory.names(URL))


def test_an_error_of_the_copying_ends_the_run(memory, monkeypatch):
  """At the next save, with what is complete as it is."""
  monkeypatch.setattr(bucket_workdir, "_LOOK_SECONDS", 0.01)
  failed = threading.Event()

  def deny(method, path):
    if "checkpoints/4" in path and method == "put_file":
      failed.set()
      raise PermissionError("no")

  with (
    pytest.raises(OSError, match=f"access to {URL} is denied"),
    opened(URL) as workdir,
    workdir.locked(),
  ):
    save(workdir.path, 2)
    workdir.flush()
    memory.before = deny
    save(workdir.path, 4)
    assert failed.wait(10)
    workdir.flush()
  assert bucket.complete_steps(memory.names(URL)) == [2]


def test_a_second_run_is_kept_out(memory, monkeypatch):
  monkeypatch.setattr(lease, "SECONDS", 5)
  monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
  with opened(URL) as first:
    with first.locked(), pytest.raises(InputError) as error, opened(URL):
      pass
    assert str(error.value).startswith(
      f"workdir {URL} is in use by another run (process "
    )
    # It was given back: there is nothing to wait for.
    with opened(URL) as second, second.locked():
      pass


def test_of_two_that_start_at_once_one_goes_on(memory):
  with opened(URL) as first, contextlib.ExitStack() as stack:
    # Both have found it free; a copy of its own for each, as on two machines.
    second = BucketWorkdir(URL)
    second.path = pathlib.Path(f"{first.path}-2")
    second.fetch()
    stack.enter_context(first.locked())
    with pytest.raises(InputError, match="is in use by another run"):
      stack.enter_context(second.locked())


def test_one_that_was_written_to_meanwhile_is_refused(memory):
  with opened(URL) as workdir:
    bucket.Folder(URL).write("config.json", b"{}")
    with (
      pytest.raises(InputError, match="meanwhile: give the command again"),
      workdir.locked(),
    ):
      pass
  assert memory.names(URL) == ["config.json", "lease/1"]


def test_one_who_was_thought_dead_writes_no_more(memory, monkeypatch):
  folder = bucket.Folder(URL)
  with (
    pytest.raises(RunError, match="has taken over gs://bucket/runs/a, as this"),
    opened(URL) as workdir,
    workdir.locked(),
  ):
    save(workdir.path, 2)
    workdir.flush()
    workdir._lease._ended.set()  # It sleeps, and renews nothing.
    other = lease.Lease(folder)
    other.wait()
    with other:
      save(workdir.path, 4)
      before = memory.names(URL)
      workdir.flush()
  assert bucket.complete_steps(memory.names(URL)) == [2]
  assert [n for n in before if "/4/" in n] == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"time": "x"}'])
def test_a_lease_that_is_none_is_taken(memory, data):
  bucket.Folder(URL).write("lease/3", data)
  toy_run()
  assert "lease/4" in memory.names(URL)


CHANGES = {"num_steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1}


def test_a_run_is_continued_from_an_empty_disk(
  memory, tmp_path, data_dir, mesh, monkeypatch
):
  monkeypatch.setattr(bucket_workdir, "_LOOK_SECONDS", 0.01)
  config = recipes.changed(recipes.tiniest(data_dir), CHANGES)
  train(config, tmp_path / "whole", mesh)
  runs.train_to(config, URL, mesh, 4, monkeypatch)
  assert bucket.complete_steps(memory.names(URL))[0] == 4
  shutil.rmtree(bucket.local_path(URL))
  train(config, URL, mesh)
  shutil.rmtree(bucket.local_path(URL))
  steps = storage.checkpoint_steps(tmp_path / "whole" / "checkpoints")
  assert bucket.complete_steps(memory.names(URL)) == steps
  bucket.Folder(URL).download(memory.names(URL), tmp_path / "copy")
  whole, copy = (
    runs.saved_state(tmp_path / name) for name in ("whole", "copy")
  )
  runs.assert_same_bits(whole, copy)
  assert runs.rows_of(tmp_path / "copy") == runs.rows_of(tmp_path / "whole")
  for name in ("config.json", "curves.png", "summary.json"):
    assert (tmp_path / "copy" / name).exists()
  assert len(list((tmp_path / "copy" / "tensorboard").iterdir())) == 2
