"""Folders in buckets: what is read, written and said when that fails."""

import importlib.util
import pathlib
import threading

import pytest

from flax_resnet import bucket
from flax_resnet.bucket import BucketError, Folder, is_url, Url
from flax_resnet.errors import InputError
from tests.buckets import MemoryBucket

URL = "gs://bucket/runs/a"


@pytest.fixture
def memory(monkeypatch):
  files = MemoryBucket()
  monkeypatch.setattr(bucket, "open_filesystem", lambda url: files)
  monkeypatch.setattr(bucket.time, "sleep", lambda seconds: None)
  return files


def test_urls_are_told_from_paths():
  assert is_url("gs://bucket/a") and is_url("s3://bucket")
  assert is_url(Url("gs://bucket/a/"))
  assert not is_url("a/b") and not is_url(pathlib.Path("a"))
  assert not is_url("hf-hub:a/b")
  assert Url("gs://bucket/a/") / "b" == "gs://bucket/a/b"
  for wrong in ("gs://", "gs:///a", "gs://b/../a", "s3://b/a//c", "s3://b/a?c"):
    with pytest.raises(InputError, match="no URL of a folder: give gs://"):
      is_url(wrong)
  with pytest.raises(InputError, match="or gs:// or s3://$"):
    is_url("ftp://a/b")


def test_a_copy_is_called_by_its_url():
  path = bucket.local_path(f"{URL}/")
  assert bucket.shown(f"no {path / 'x'} in {path}!") == f"no {URL}/x in {URL}!"
  assert bucket.shown("/gs/bucket") == "/gs/bucket"


def test_objects_are_written_listed_and_read(memory, tmp_path):
  folder = Folder(f"{URL}/")
  assert folder.sizes() == {} and folder.read("b/c") is None
  folder.write("b/c", b"123")
  folder.write("b/c", b"1234")
  (tmp_path / "d").write_text("12")
  folder.upload(tmp_path, ["d"])
  folder.write("bb", b"")
  Folder("gs://bucket/runs/ab").write("x", b"")  # Of another folder.
  assert folder.sizes() == {"b/c": 4, "bb": 0, "d": 2}
  assert folder.sizes("b") == {"b/c": 4}
  assert folder.read("b/c") == b"1234"
  folder.download(["b/c", "d"], tmp_path / "copy")
  assert (tmp_path / "copy" / "b" / "c").read_bytes() == b"1234"
  assert (tmp_path / "copy" / "d").read_text() == "12"
  folder.remove(["b/c", "none"])
  assert folder.sizes() == {"bb": 0, "d": 2}
  with pytest.raises(FileNotFoundError):
    folder.download(["none"], tmp_path)
  assert "" in Folder(f"{URL}/d").versions()
  assert folder.versions().keys() == {"bb", "d"}


def test_an_object_is_created_once(memory):
  folder, made = Folder(URL), []
  race = [
    threading.Thread(target=lambda n=n: made.append(folder.create("x", n)))
    for n in (b"1", b"2", b"3")
  ]
  for thread in race:
    thread.start()
  for thread in race:
    thread.join()
  assert sorted(made) == [False, False, True]
  # One whose first answer was lost asks again.
  assert folder.create("x", folder.read("x"))


def test_no_object_is_written_elsewhere(memory, tmp_path):
  folder = Folder(URL)
  for name in ("../x", "a/../../x", "a\\..\\x", "/x"):
    with pytest.raises(BucketError, match="has an object .*: rename it"):
      folder.download([name], tmp_path / "copy")
  assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_complete_with_its_marker():
  names = [
    *("checkpoints/3/commit_success.txt", "checkpoints/3/state/a"),
    *("checkpoints/20/commit_success.txt", "checkpoints/5/state/a"),
    *("checkpoints/7/state/commit_success.txt", "commit_success.txt"),
  ]
  assert bucket.complete_steps(names) == [20, 3]
  assert bucket.files_of_step(names, 3) == ["checkpoints/3/state/a"]


class HttpError(Exception):
  """As gcsfs has it."""

  def __init__(self, code, message="error"):
    super().__init__(message)
    self.code = code


def client_error(code):
  """Returns an error as s3fs makes it of botocore's."""
  cause = Exception(code)
  cause.response = {"Error": {"Code": code}}
  error = OSError(22, code)
  error.__cause__ = cause
  return error


class NoCredentialsError(Exception):
  """As botocore has it."""


def test_a_busy_server_is_asked_again(memory):
  folder, answers = Folder(URL), [HttpError(503), OSError(16), TimeoutError()]

  def before(method, path):
    if answers:
      raise answers.pop(0)

  memory.before = before
  folder.write("a", b"1")
  assert not answers and folder.read("a") == b"1"


@pytest.mark.parametrize(
  ("error", "sentence", "asked"),
  [
    (FileNotFoundError("b"), "there is no bucket gs://bucket: make it", 1),
    (PermissionError("no"), f"access to {URL} is denied (PermissionError", 1),
    (OSError("Forbidden: x\ny"), f"access to {URL} is denied (OSError:", 1),
    (client_error("403"), f"access to {URL} is denied", 1),
    (HttpError(401), f"access to {URL} is denied", 1),
    (HttpError(401, "Anonymous caller x"), "use gcloud auth appl", 1),
    (NoCredentialsError("x"), f"there are no credentials for {URL}: use", 1),
    (HttpError(503, "busy"), f"{URL} does not answer (HttpError: busy)", 5),
    (
      ConnectionError("at https://x/y?X-Amz-Signature=abc now"),
      f"{URL} does not answer (ConnectionError: at https://x/y now)",
      5,
    ),
  ],
)
def test_what_fails_for_good_is_one_sentence(
  memory, monkeypatch, error, sentence, asked
):
  calls, clock = [], iter(range(0, 1000, 8))
  monkeypatch.setattr(bucket.time, "monotonic", lambda: next(clock))

  def before(method, path):
    calls.append(path)
    raise error

  memory.before = before
  with pytest.raises(BucketError) as raised:
    Folder(URL).write("a", b"")
  assert str(raised.value).startswith(sentence) or sentence in str(raised.value)
  assert "\n" not in str(raised.value)
  assert (len(calls) > 1) == (asked > 1)


def test_a_conflict_is_no_failure(memory):
  folder = Folder(URL)
  folder.write("x", b"theirs")
  for error in (client_error("PreconditionFailed"), HttpError(412)):
    memory.before = lambda method, path, error=error: (
      (_ for _ in ()).throw(error) if method == "pipe_file" else None
    )
    assert not folder.create("x", b"ours")


@pytest.mark.parametrize(
  ("url", "wanted"),
  [
    ("gs://b/a", "gcsfs is not installed, .*flax_resnet.gcs.'$"),
    ("s3://b/a", "s3fs is not installed, .*flax_resnet.s3.'$"),
  ],
)
def test_a_missing_package_is_named(monkeypatch, url, wanted):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=wanted):
    Folder(url)
