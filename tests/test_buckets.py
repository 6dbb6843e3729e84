"""Buckets of servers on 127.0.0.1, which tests/servers.py sets up.

Workdirs in them, and data.

`pytest -m slow tests/test_buckets.py -n 0 -s`, some minutes, prints what was
done how often. Not shown here: Google's own servers, whose conditional write a
proxy stands in for, and those of Amazon.
"""

import collections
import os
import pathlib
import random
import shutil
import signal
import time

import fsspec
import pytest

from flax_resnet import bucket
from tests import recipes, runs, servers
from tests.test_train_sources import as_parquet, as_shards, SMALL

pytestmark = pytest.mark.slow

CHANGES = {
  **recipes.ONE_BLOCK,
  **recipes.FEW_DIGITS,
  "num_steps": 60,
  "log_every": 1,
  "eval_every": 20,
  "checkpoint_every": 5,
}
# A lease of seconds, and rows as often.
TRAIN = """
import os
from flax_resnet import bucket
from flax_resnet.training import bucket_workdir, lease
lease.SECONDS, lease.RENEW_SECONDS = 3, 0.5
bucket_workdir.SECONDS = 1
bucket.PATIENCE = bucket.RUN_PATIENCE = float(os.environ.get("PATIENCE", 60))
import train
train.main()
"""


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request):
  """The scheme of a server, and its port."""
  with servers.serving(request.param) as port:
    yield request.param, port


@pytest.fixture
def proxy(server, monkeypatch):
  """A proxy before the server, which this process asks as well."""
  scheme, port = server
  proxy = servers.Proxy(port, one_at_a_time=scheme == "gs")
  if scheme == "gs":
    servers.honor_generations(proxy, port)
  for name, value in servers.environ(scheme, proxy.port).items():
    monkeypatch.setenv(name, value)
  # They keep the address that they have seen first.
  fsspec.get_filesystem_class(scheme).clear_instance_cache()
  yield proxy
  proxy.close()


@pytest.fixture
def url(server, tmp_path):
  return f"{server[0]}://{servers.BUCKET}/{tmp_path.name}/run"


@pytest.fixture
def recipe(tmp_path, data_dir):
  return recipes.write_tiny(tmp_path, data_dir, **CHANGES)


@pytest.fixture
def start(recipe, tmp_path):
  """Starts train.py with an empty local disk, in a process of its own."""
  started = []

  def start(url, *flags, **variables):
    disk = tmp_path / f"disk{len(started)}"
    disk.mkdir()
    process = servers.python(
      TRAIN,
      *(f"--config={recipe}", f"--workdir={url}", *flags),
      TMPDIR=str(disk),
      **variables,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def fetched(url, folder):
  """Returns a copy of all that is in a workdir."""
  source = bucket.Folder(url)
  source.download(source.sizes(), folder)
  return folder


def wait(process, condition):
  while process.poll() is None and not condition():
    time.sleep(0.02)


def steps(url):
  return bucket.Folder(url).steps()


def test_what_a_folder_does_with_objects(proxy, url, tmp_path):
  folder = bucket.Folder(url)
  assert folder.sizes() == {} and folder.read("none") is None
  names = [f"d/{number}" for number in range(20)]
  (tmp_path / "d").mkdir()
  for number, name in enumerate(names):
    (tmp_path / name).write_bytes(os.urandom(number**4))
  folder.upload(tmp_path, names)
  assert folder.sizes("d") == {n: (tmp_path / n).stat().st_size for n in names}
  folder.download(names, tmp_path / "copy")
  for name in names:
    assert (tmp_path / "copy" / name).read_bytes() == (
      tmp_path / name
    ).read_bytes()
  folder.write("x", b"1")
  folder.write("x", b"22")
  assert folder.read("x") == b"22"
  before = folder.versions()["x"]
  assert bucket.Folder(f"{url}/x").versions() == {"": before}
  folder.write("x", b"33")
  assert folder.versions()["x"] != before
  assert folder.create("lease/1", b"a")
  assert not folder.create("lease/1", b"b")
  assert folder.create("lease/1", b"a")
  folder.remove([*names, "none"])
  assert folder.sizes() == {"lease/1": 1, "x": 2}
  with pytest.raises(FileNotFoundError):
    folder.download(["none"], tmp_path)
  nowhere = bucket.Folder(f"{url[:2]}://nowhere/x")
  for call in (nowhere.sizes, lambda: nowhere.write("x", b"")):
    with pytest.raises(OSError, match="there is no bucket"):
      call()


def test_kill_at_any_time_costs_nothing(proxy, url, start, tmp_path):
  """Ten times: each goes on from an empty disk, and ends with the same bits."""
  rng, done = random.Random(10), collections.Counter()
  whole = start(tmp_path / "whole")
  _, err = whole.communicate(timeout=300)
  assert not err and whole.returncode == 0
  last = -1
  while done["killed"] < 10:
    process = start(url)
    before = set(bucket.Folder(url).sizes())
    kind = rng.choice(["at random", "after a save", "while saving"])
    if kind == "at random":
      time.sleep(rng.uniform(0, 15))
    elif kind == "after a save":
      found = steps(url)
      wait(process, lambda found=found: steps(url) != found)
      time.sleep(rng.uniform(0, 0.5))
    else:
      wait(
        process,
        lambda before=before: any(
          "/state/" in name for name in set(bucket.Folder(url).sizes()) - before
        ),
      )
      time.sleep(rng.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    if process.returncode == 0:
      break
    assert process.returncode == -9, err
    time.sleep(1)  # The server may be doing what it was asked for last.
    done["killed"] += 1
    done[f"killed {kind}"] += 1
    done["lease taken over"] += "its lease is taken over" in out
    found = bucket.Folder(url).sizes()
    newest = max(bucket.complete_steps(found), default=0)
    assert newest >= last
    last = newest
    there = {name.split("/")[1] for name in found if "/state/" in name}
    done["with a checkpoint half copied"] += len(there) > len(
      bucket.complete_steps(found)
    )
    shutil.rmtree(tmp_path / "look", ignore_errors=True)
    copy = fetched(url, tmp_path / "look")
    rows = runs.rows_of(copy) if (copy / "metrics.jsonl").exists() else []
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= newest
  process = start(url)
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  copy = fetched(url, tmp_path / "copy")
  runs.assert_same_bits(
    runs.saved_state(copy), runs.saved_state(tmp_path / "whole")
  )
  assert runs.rows_of(copy) == runs.rows_of(tmp_path / "whole")
  assert [r["step"] for r in runs.rows_of(copy)] == list(range(1, 61))
  print(url, dict(done))


def test_of_two_processes_one_runs(proxy, url, start):
  first, second = start(url), start(url)
  ends = [process.communicate(timeout=300) for process in (first, second)]
  codes = [first.returncode, second.returncode]
  assert sorted(codes) == [0, 2], ends
  _, err = ends[codes.index(2)]
  assert err.count("\n") == 1 and f"workdir {url} is in use by another" in err


def busy(scheme):
  if scheme == "s3":
    return 503, b"<Error><Code>SlowDown</Code><Message>x</Message></Error>"
  return 503, b'{"error": {"code": 503, "message": "busy"}}'


def denied(scheme):
  if scheme == "s3":
    return 403, b"<Error><Code>AccessDenied</Code><Message>x</Message></Error>"
  return 403, b'{"error": {"code": 403, "message": "no access"}}'


def test_a_server_that_is_busy_for_a_while(proxy, server, url, start):
  """A fifth of all answers is 503, and for 5 s all of them are."""
  passed, rng, until = proxy.answer, random.Random(1), []

  def answer(method, path, body):
    if "checkpoints%2F30" in path or "checkpoints/30" in path:
      until.append(time.monotonic() + 5)
    if rng.random() < 0.2 or (until and time.monotonic() < until[0]):
      return busy(server[0])
    return passed(method, path, body)

  proxy.answer = answer
  process = start(url)
  out, err = process.communicate(timeout=550)
  assert (process.returncode, err) == (0, ""), out
  proxy.answer = passed
  assert until and steps(url)[0] == 60


def test_a_server_that_is_gone(proxy, server, url, start, tmp_path):
  """In the middle of a checkpoint: what is complete stays, and goes on."""
  passed, gone = proxy.answer, []

  def answer(method, path, body):
    if "checkpoints%2F30%2F" in path or "checkpoints/30/" in path or gone:
      gone.append(path)
      if len(gone) > 3:
        return busy(server[0])
    if b"checkpoints/30/" in body[:400]:
      gone.append(path)
    return passed(method, path, body)

  proxy.answer = answer
  process = start(url, PATIENCE="5")
  out, err = process.communicate(timeout=300)
  assert process.returncode == 1
  assert err.count("\n") == 1, err
  assert err.startswith("error: ") and "does not answer" in err
  assert url in err and "the same command continues" in err
  proxy.answer = passed
  assert steps(url)[0] == 25
  process = start(url)
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, ""), err
  assert "continues after step 25\n" in out


def test_what_is_denied(proxy, server, url, start):
  passed = proxy.answer
  for methods in (("PUT", "POST"), ("GET", "HEAD", "PUT", "POST")):
    proxy.answer = lambda method, path, body, methods=methods: (
      denied(server[0]) if method in methods else passed(method, path, body)
    )
    process = start(url)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err.count("\n")) == (2, 1), err
    assert f"access to {url} is denied" in err
    for secret in ("AKIDFORTESTS", "secret-for-tests"):
      assert secret not in err + out
  proxy.answer = passed
  assert not bucket.Folder(url).sizes()


def test_no_credentials(proxy, server, url, start):
  if server[0] == "gs":
    anonymous = b'{"error": {"code": 401, "message": "Anonymous caller x"}}'
    proxy.answer = lambda *_: (401, anonymous)
    process = start(url)
  else:
    process = start(
      url,
      AWS_ACCESS_KEY_ID="",
      AWS_SECRET_ACCESS_KEY="",
      AWS_EC2_METADATA_DISABLED="true",
      AWS_SHARED_CREDENTIALS_FILE="/none",
      AWS_CONFIG_FILE="/none",
    )
  _, err = process.communicate(timeout=300)
  assert (process.returncode, err.count("\n")) == (2, 1), err
  assert f"there are no credentials for {url}: use " in err


def test_other_commands_read_it(proxy, url, start, tmp_path):
  process = start(url, "--config.num_steps=10")
  _, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  verbs = {
    "evaluate": f"evaluate --workdir {url} --json",
    "export": f"export {tmp_path}/net --workdir {url}",
    "convert": f"convert {url} {tmp_path}/net.safetensors",
    "inspect": f"inspect --workdir {url} --images 8",
  }
  for verb in verbs.values():
    code = "from flax_resnet.__main__ import main; main()"
    process = servers.python(code, *verb.split(), TMPDIR=str(tmp_path))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), verb
    assert out
  assert bucket.Folder(url).read("inspect.json")
  assert not list(pathlib.Path(tmp_path).glob("flax_resnet-*"))


def test_parts_of_objects(proxy, server, url, tmp_path):
  content = os.urandom(5000)
  (tmp_path / "a").write_bytes(content)
  folder = bucket.Folder(url)
  folder.upload(tmp_path, ["a"])
  passed, answers = proxy.answer, [busy(server[0])] * 3
  proxy.answer = lambda *request: answers.pop() if answers else passed(*request)
  ranges = [("a", 7, 1000), ("a", 0, 1), ("a", 4990, 6000), ("a", 6000, 7000)]
  found = folder.read_ranges(ranges)
  assert found == [content[start:end] for _, start, end in ranges]
  assert not answers
  with pytest.raises(FileNotFoundError):
    folder.read_ranges([("a", 0, 1), ("none", 0, 1)])


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_run_on_data_in_a_bucket(proxy, server, url, tmp_path, kind):
  """Killed, and continued, while the server is busy: the bits of a disk."""
  write, split = {
    "webdataset": (as_shards, "val"),
    "parquet": (as_parquet, "validation"),
  }[kind]
  write(tmp_path / "data")
  files = [p.name for p in (tmp_path / "data").iterdir() if p.name[0] != "."]
  bucket.Folder(url).upload(tmp_path / "data", files)
  changes = {**SMALL, "data.name": kind, "data.eval_split": split}
  # An evaluation starts the workers anew.
  changes |= {"num_steps": 60, "eval_every": 60}
  changes |= {"log_every": 1, "checkpoint_every": 5}

  def train(workdir, root, **more):
    values = changes | {"data.root": root, **more}
    return servers.python(
      TRAIN,
      f"--config={recipes.ROOT}/configs/folder.py",
      f"--workdir={tmp_path / workdir}",
      *(f"--config.{key}={value}" for key, value in values.items()),
      XDG_CACHE_HOME=str(tmp_path / "cache"),
      HF_HOME=str(tmp_path / "cache"),
    )

  whole = train("whole", tmp_path / "data")
  _, err = whole.communicate(timeout=300)
  assert (whole.returncode, err) == (0, "")
  passed, rng = proxy.answer, random.Random(1)
  proxy.answer = lambda *request: (
    busy(server[0]) if rng.random() < 0.1 else passed(*request)
  )
  process = train("run", url)
  rows = tmp_path / "run" / "metrics.jsonl"
  wait(process, lambda: rows.exists() and rows.read_text().count("\n") > 12)
  process.kill()
  _, err = process.communicate()
  assert process.returncode == -9, err
  workers = {"data.num_workers": 2} if kind == "webdataset" else {}
  process = train("run", url, **workers)
  out, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "")
  assert "continues after step" in out
  runs.assert_same_bits(
    runs.saved_state(tmp_path / "run"), runs.saved_state(tmp_path / "whole")
  )
  assert runs.rows_of(tmp_path / "run") == runs.rows_of(tmp_path / "whole")
  for content in runs.files_of(tmp_path / "run").values():
    assert b"AKIDFORTESTS" not in content and b"secret-for" not in content


def test_data_that_are_not_there(proxy, server, url, tmp_path):
  for root, sentence in {
    f"{url[:2]}://nowhere/x": f"there is no bucket {url[:2]}://nowhere: make",
    f"{url}/none": f"root is {url}/none, where there is no folder: give",
  }.items():
    process = servers.python(
      "from flax_resnet.__main__ import main; main()",
      *("check", "--config", f"{recipes.ROOT}/configs/folder.py"),
      *("--config.data.name=webdataset", f"--config.data.root={root}"),
    )
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err.count("\n")) == (2, 1), err
    assert sentence in err
