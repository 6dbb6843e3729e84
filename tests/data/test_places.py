"""Data in buckets: the records, and the order, of the same files here.

The bucket is one in memory; `tests/test_buckets.py` has servers.
"""

import json
import os
import pickle

import numpy as np
import pytest

from flax_resnet import __main__ as command
from flax_resnet import bucket, data
from flax_resnet.data import discovery, places, shards
from flax_resnet.data.sources import Columns
from flax_resnet.data.tfds import TFDSSource
from flax_resnet.data.webdataset import WebDatasetSource
from flax_resnet.errors import ImageError, InputError, RunError
from tests.buckets import MemoryBucket
from tests.data.images import plain
from tests.data.test_webdataset import CLASSES, members_of, write

URL = "gs://bucket/sets/wds"


@pytest.fixture
def memory(tmp_path, monkeypatch):
  """A bucket with two shards to train on and one to evaluate on."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  files = MemoryBucket()
  monkeypatch.setattr(bucket, "open_filesystem", lambda url: files)
  monkeypatch.setattr(bucket.time, "sleep", lambda seconds: None)
  monkeypatch.setattr(bucket, "PATIENCE", 5)
  monkeypatch.setattr(bucket, "RUN_PATIENCE", 5)
  folder = tmp_path / "wds"
  write(folder / "train-0.tar", members_of(range(6)))
  write(folder / "train-1.tar", members_of(range(6, 12)))
  write(folder / "val-0.tar", members_of(range(12, 15)))
  (folder / "classes.txt").write_text("\n".join(CLASSES))
  put(files, folder, URL)
  return files


def put(memory, folder, url):
  """Copies a folder, but for hidden files, to a bucket."""
  for path in folder.rglob("*"):
    if path.is_file() and path.name[0] != ".":
      name = path.relative_to(folder).as_posix()
      memory.pipe_file(f"{url.partition('://')[2]}/{name}", path.read_bytes())
  memory.writes = 0


def asked(memory):
  """Returns the paths of objects that are read from here on."""
  paths = []

  def before(method, path):
    if method in ("cat_file", "get_file"):
      paths.append(path.rpartition("/")[2])

  memory.before = before
  return paths


def load(root, **changes):
  section = {
    "name": "webdataset",
    "root": str(root),
    "train_split": "train",
    "eval_split": "val",
    "image_size": 8,
    "random_resized_crop": True,
    "num_threads": 2,
  }
  return data.load(section | changes, num_classes=3)


def open_train(root=URL):
  return WebDatasetSource(root, "train", Columns())


def test_records_and_batches_are_those_of_the_files(memory, tmp_path):
  here, there = load(tmp_path / "wds"), load(URL)
  assert there.class_names == CLASSES and there.identity == here.identity
  assert [there.train.source[i] for i in range(12)] == [
    here.train.source[i] for i in range(12)
  ]
  assert there.train.source.name(7) == f"000007.jpg in {URL}/train-1.tar"
  batches = (
    each.train.train_batches(batch_size=6, seed=3, first_step=5)
    for each in (here, there)
  )
  for _, one, other in zip(range(4), *batches, strict=False):
    for key, value in one.items():
      np.testing.assert_array_equal(other[key], value)
  (batch,) = there.eval.eval_batches(batch_size=4)
  assert batch["mask"].sum() == 3
  assert not memory.writes


def test_the_records_of_a_chunk_are_asked_for_at_once(memory, monkeypatch):
  source, calls = open_train(), []
  read = bucket.Folder.read_ranges
  monkeypatch.setattr(
    bucket.Folder,
    "read_ranges",
    lambda self, ranges: calls.append(len(ranges)) or read(self, ranges),
  )
  ahead = source.fetched(np.array([3, 9, 3, 5]))
  assert calls == [3]
  assert [ahead[i] for i in (3, 9, 5)] == [source[i] for i in (3, 9, 5)]
  assert calls == [3, 1, 1, 1]
  assert ahead[0] == source[0] and len(ahead) == 12
  assert ahead.name(3) == source.name(3)


@pytest.mark.parametrize(
  ("root", "count"),
  [
    (f"{URL}/", 12),
    (f"{URL}/train-{{0..1}}.tar", 12),
    (f"{URL}/train-1.tar", 6),
    ("gs://bucket/{sets/wds/train-0,other/train-0}.tar", 12),
    ("gs://bucket/divided", 6),
  ],
)
def test_shards_are_found_as_those_of_a_folder(memory, tmp_path, root, count):
  content = (tmp_path / "wds" / "train-0.tar").read_bytes()
  for path in ("other/train-0.tar", "divided/train/0.tar", "divided/val/0.tar"):
    memory.pipe_file(f"bucket/{path}", content)
  assert len(open_train(root)) == count
  if root.endswith("divided"):
    assert shards.split_names(root) == ["train", "val"]


def test_the_index_is_made_once_and_kept_on_this_machine(memory, tmp_path):
  paths = asked(memory)
  open_train()
  assert set(paths) == {"train-0.tar", "train-1.tar", "classes.txt"}
  paths.clear()
  source = open_train()
  assert paths == ["classes.txt"]
  (index,) = (tmp_path / "cache" / "flax_resnet" / "indexes").iterdir()
  shard = write(tmp_path / "new.tar", members_of(range(5)))
  memory.pipe_file(f"{URL[5:]}/train-0.tar", shard.read_bytes())
  with pytest.warns(UserWarning, match=f"index {index} was made: it is made"):
    assert len(open_train()) == 11
  assert source[0] == open_train()[0]  # It is the same member.
  with pytest.raises(ValueError, match="train-0.tar has changed since it was"):
    source[5]
  with pytest.raises(ValueError, match="train-0.tar has changed since it was"):
    source.fetched(np.array([5]))[5]
  memory.rm_file(f"{URL[5:]}/train-1.tar")
  with pytest.raises(ImageError, match="the shard cannot be read: it is gone"):
    source.fetched(np.array([0, 7]))[7]


def test_large_members_are_passed_over(memory, tmp_path, monkeypatch):
  """A look for images reads no more than a window of each."""
  monkeypatch.setattr(places, "_WINDOW", 2048)
  large = [("0.jpg", plain((0, 0, 0)).ljust(90_000, b"\0")), ("0.cls", b"0")]
  other = [("1.jpg", plain((0, 0, 0)).ljust(90_000, b"\0")), ("1.cls", b"1")]
  shard = write(tmp_path / "large.tar", [*large, *other])
  memory.pipe_file("bucket/large/0.tar", shard.read_bytes())
  sizes, cat_file = [], memory.cat_file

  def count(path, *args, **kwargs):
    sizes.append(len(data := cat_file(path, *args, **kwargs)))
    return data

  monkeypatch.setattr(memory, "cat_file", count)
  assert len(open_train("gs://bucket/large")) == 2
  assert sum(sizes) < 20_000 < 180_000 < shard.stat().st_size


def test_a_server_that_is_busy_is_asked_again(memory):
  source, answers = open_train(), [OSError(16), TimeoutError()]

  def before(method, path):
    if answers:
      raise answers.pop(0)

  expected = source[3]
  memory.before = before
  assert source[3] == expected and not answers
  answers += [OSError(16)] * 3
  assert source.fetched(np.array([3, 4]))[3] == expected


def test_a_server_that_is_gone_ends_a_run_and_skips_nothing(
  memory, monkeypatch
):
  train = load(URL, on_error="skip").train
  clock = iter(range(0, 10_000, 4))
  monkeypatch.setattr(bucket.time, "monotonic", lambda: next(clock))

  def before(method, path):
    raise OSError("503 https://host/o?X-Signature=secret")

  memory.before = before
  with pytest.raises(RunError) as error:
    next(train.train_batches(batch_size=6, seed=0))
  assert str(error.value) == (
    f"{URL} does not answer (OSError: 503 https://host/o): the same command "
    "continues"
  )


def test_what_is_sent_to_a_worker_holds_no_connection(memory, monkeypatch):
  source = open_train()
  expected, opened = source[7], []
  folder = bucket.Folder
  monkeypatch.setattr(
    bucket, "Folder", lambda *args: opened.append(args) or folder(*args)
  )
  assert source[7] == expected and not opened
  again = pickle.loads(pickle.dumps(source))
  assert not opened and again[7] == expected
  assert opened == [(URL, bucket.RUN_PATIENCE)]
  # Nor does one that has forked use that of its parent.
  process = os.getpid()
  monkeypatch.setattr(os, "getpid", lambda: process + 1)
  assert source[7] == expected and len(opened) == 2


NOWHERE = {
  "gs://bucket/none": "root is gs://bucket/none, where there is no folder: giv",
  f"{URL}/train-{{0..2}}.tar": f"of which {URL}/train-2.tar is not there",
  "gs://bucket/text": "has no shards of the split 'train': there is no .tar",
  "gs://b/../c": "gs://b/../c is no URL of a folder: give gs://BUCKET/FOLDER",
}


@pytest.mark.parametrize(("root", "sentence"), NOWHERE.items())
def test_where_there_are_no_shards(memory, root, sentence):
  memory.pipe_file("bucket/text/a.txt", b"")
  with pytest.raises(InputError) as error:
    load(root)
  assert sentence in str(error.value)


ANSWERS = {
  "there is no bucket gs://bucket: make it first": FileNotFoundError("bucket"),
  f"access to {URL} is denied (PermissionError: no)": PermissionError("no"),
  f"there are no credentials for {URL}: use gcloud auth": type(
    "DefaultCredentialsError", (Exception,), {}
  )("x"),
}


@pytest.mark.parametrize(("sentence", "answer"), ANSWERS.items())
def test_what_the_server_denies(memory, sentence, answer):
  def before(method, path):
    raise answer

  memory.before = before
  with pytest.raises(InputError) as error:
    load(URL)
  assert str(error.value).startswith(f"config.data: {sentence}")
  assert "\n" not in str(error.value)


def test_a_shard_that_is_cut_short_is_found(memory, tmp_path):
  content = (tmp_path / "wds" / "train-1.tar").read_bytes()
  for cut in (700, 1100, 4096, 0):
    memory.pipe_file(f"{URL[5:]}/train-1.tar", content[:cut])
    with pytest.raises(InputError, match=f"{URL}/train-1.tar is cut short, or"):
      load(URL)


def test_a_member_is_known_by_its_header():
  names = ("a.jpg", "x" * 96 + ".jpg", "y" * 120 + ".jpg", "튤립.jpg")
  for name in names:
    info = shards.tarfile.TarInfo(name)
    info.size = 7
    header = info.tobuf(shards.tarfile.PAX_FORMAT)[-512:]
    assert shards.is_member(header, name, 7)
    assert not shards.is_member(header, name, 8)
    assert not shards.is_member(bytes(512), name, 7)
    assert not shards.is_member(header[:100], name, 7)
  info = shards.tarfile.TarInfo("b.jpg")
  info.size = 7
  assert not shards.is_member(info.tobuf(), "a.jpg", 7)


# Copies of folders, of which parquet files are read.


def test_a_folder_is_copied_once_and_then_what_has_changed(memory, tmp_path):
  url = "s3://bucket/sets/pq"
  for name in ("data/a.parquet", "data/b.parquet", "classes.txt"):
    memory.pipe_file(f"bucket/sets/pq/{name}", name.encode())
  paths = asked(memory)
  folder = places.fetch_folder(url)
  assert bucket.shown(f"{folder}/data") == f"{url}/data"
  names = lambda: sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file()
  )
  assert names() == ["classes.txt", "data/a.parquet", "data/b.parquet"]
  assert (folder / "data" / "b.parquet").read_bytes() == b"data/b.parquet"
  paths.clear()
  assert places.fetch_folder(f"{url}/") == folder and not paths
  memory.pipe_file("bucket/sets/pq/data/a.parquet", b"DATA/A.PARQUET")
  memory.rm_file("bucket/sets/pq/classes.txt")
  (folder / "data" / "other.parquet").write_text("")
  places.fetch_folder(url)
  assert paths == ["a.parquet"]
  assert names() == ["data/a.parquet", "data/b.parquet"]
  assert (folder / "data" / "a.parquet").read_bytes() == b"DATA/A.PARQUET"


def test_a_copy_that_was_stopped_goes_on(memory, monkeypatch):
  monkeypatch.setattr(places, "_AT_A_TIME", 1)
  for number in range(5):
    memory.pipe_file(f"bucket/pq/{number}.parquet", b"%d" % number)

  def before(method, path):
    if path.endswith("/2.parquet"):
      raise PermissionError("no")

  memory.before = before
  with pytest.raises(bucket.BucketError, match="access to gs://bucket/pq is d"):
    places.fetch_folder("gs://bucket/pq")
  paths = asked(memory)
  folder = places.fetch_folder("gs://bucket/pq")
  assert paths == ["2.parquet", "3.parquet", "4.parquet"]
  assert [(folder / f"{n}.parquet").read_text() for n in range(5)] == [*"01234"]
  assert not list(folder.parent.glob(".*.partial"))
  # Without its record, nothing is taken for what it is.
  (record,) = folder.parent.glob(".*.json")
  record.write_text(json.dumps({"0.parquet": ["x", 1]}))
  paths.clear()
  places.fetch_folder("gs://bucket/pq")
  assert len(paths) == 5


def test_a_copy_without_room_is_refused(memory, monkeypatch):
  memory.pipe_file("bucket/pq/0.parquet", bytes(1000))
  usage = type("Usage", (), {"free": 999})
  monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: usage)
  with pytest.raises(ValueError, match="set XDG_CACHE_HOME to a folder on a"):
    places.fetch_folder("gs://bucket/pq")
  with pytest.raises(FileNotFoundError, match="where there is no folder: give"):
    places.fetch_folder("gs://bucket/none")


def test_shards_in_a_bucket_are_prepared(memory, tmp_path, call_main):
  memory.pipe_file("bucket/pq/data/train.parquet", b"")
  memory.pipe_file("bucket/photos/a/1.jpg", b"")
  for url, kind in {
    URL: "webdataset",
    "gs://bucket/sets/wds/train-0.tar": "webdataset",
    "gs://bucket/pq": "parquet",
    "gs://bucket/photos": "folder",
  }.items():
    assert discovery.kind_of(url) == kind
  code, out, err = call_main(
    command.main, "prepare", URL, "--data-dir", tmp_path / "tfds"
  )
  assert (code, err) == (0, "")
  assert "train 12, val 3\nto read it: data.name=wds data.data_dir=" in out
  copy = TFDSSource("wds", "train", str(tmp_path / "tfds"))
  source = open_train()
  assert [copy[i] for i in range(12)] == [source[i] for i in range(12)]
  code, _, err = call_main(command.main, "prepare", "gs://bucket/photos")
  assert code == 2 and "copy them, 'gcloud storage cp -r gs://bucket/pho" in err


@pytest.mark.deep
def test_parquet_in_a_bucket_is_that_of_the_files(
  memory, tmp_path, monkeypatch
):
  datasets = pytest.importorskip("datasets")
  from tests.data.test_arrow import as_parquet  # It needs them, too.

  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  url, folder = "s3://bucket/sets/pq", tmp_path / "pq"
  as_parquet(folder)
  put(memory, folder, url)
  splits = {"name": "parquet", "eval_split": "test"}
  here, there = load(folder, **splits), load(url, **splits)
  assert there.identity == here.identity
  assert [there.train.source[i] for i in range(30)] == [
    here.train.source[i] for i in range(30)
  ]
  assert there.train.source.name(3) == f"record 3 of train in {url}"
  assert discovery.open_splits("parquet", Columns(), root=url).keys() == {
    "train",
    "test",
  }
  with pytest.raises(InputError) as error:
    load(url, image_column="picture", **splits)
  assert bucket.shown(str(error.value)).startswith(
    f"config.data: {url} has no column 'picture': it has image, label; set"
  )
  memory.pipe_file("bucket/text/a.txt", b"")
  with pytest.raises(InputError) as error:
    load("gs://bucket/text", **splits)
  assert "gs://bucket/text cannot be read as" in bucket.shown(str(error.value))
