"""Copies of runs and weights that lie in buckets, for whoever reads them."""

from collections.abc import Iterable, Sequence
import functools
import pathlib
import shutil

from flax_resnet import bucket, storage
from flax_resnet.bucket import BucketError
from flax_resnet.weights import files

# A folder with one of these holds weights: Orbax's, those of a run, a clone's.
_WEIGHTS = ("_METADATA", "state/_METADATA", "config.json")
# A run in progress replaces its checkpoints.
_ATTEMPTS = 3


def fetch(url: str) -> pathlib.Path:
  """Returns a copy of a weight file, a checkpoint, a run or a hub's clone.

  It is fetched again when it has changed.

  Raises:
    BucketError: if it cannot be read, or is none of these.
  """
  return _fetch(url, tuple(bucket.Folder(url).versions().items()))


@functools.cache
def _fetch(url: str, versions: tuple[tuple[str, str], ...]) -> pathlib.Path:
  source, path = bucket.Folder(url), bucket.local_path(url)
  names = dict(versions)
  if "" in names:
    return _fetch_file(source.url)
  if any(name.startswith("checkpoints/") for name in names):
    return fetch_run(url)
  if not any(name in names for name in _WEIGHTS):
    raise BucketError(f"there are no weights at {url}: give those of another")
  source.download(names, path)
  return path


def _fetch_file(url: str) -> pathlib.Path:
  above, _, name = url.rpartition("/")
  source, path = bucket.Folder(above), bucket.local_path(url)
  source.download([name], path.parent)
  if name.lower().endswith(files.SHARDED):
    source.download(files.shards(path), path.parent)
  return path


def fetch_config(url: str) -> pathlib.Path:
  """Returns a copy of the config.json of a run.

  Args:
    url: URL of the workdir, or of the file.

  Raises:
    BucketError: if it cannot be read, or is not there.
  """
  workdir = url.rstrip("/").removesuffix("/config.json")
  content = bucket.Folder(workdir).read("config.json")
  if content is None:
    raise BucketError(
      f"{workdir} holds no config.json: give the URL of a run; recipes in "
      "Python are files of this machine"
    )
  path = bucket.local_path(workdir) / "config.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return path


def fetch_run(url: str, which: str = "newest") -> pathlib.Path:
  """Returns a copy of a workdir, with one of its checkpoints.

  Of the other complete checkpoints it has the metrics.

  Args:
    url: URL of the workdir.
    which: the checkpoint, as in `files.find_checkpoint`; default "newest".

  Raises:
    BucketError: if it cannot be read.
    WeightsError: if it has no such checkpoint.
  """
  versions = tuple(bucket.Folder(url).versions().items())
  return _copy_of_run(url, which, versions)


@functools.cache
def _copy_of_run(
  url: str, which: str, versions: tuple[tuple[str, str], ...]
) -> pathlib.Path:
  del versions  # Of what is cached.
  source, path = bucket.Folder(url), bucket.local_path(url)
  for _ in range(_ATTEMPTS):
    shutil.rmtree(path, ignore_errors=True)
    try:
      _fetch_run(source, path, which)
    except FileNotFoundError:
      continue
    return path
  raise BucketError(f"{url} changes while it is read: try again")


def _fetch_run(
  source: bucket.Folder, workdir: pathlib.Path, which: str
) -> None:
  names = source.sizes()
  steps = bucket.complete_steps(names)
  rows = {f"checkpoints/{step}/metrics/metrics" for step in steps}
  source.download([*bucket.small_files(names), *(rows & names.keys())], workdir)
  for step in steps:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
  for step in _needed(workdir, steps, which):
    source.download(bucket.files_of_step(names, step), workdir)
    folder = workdir / "checkpoints" / str(step)
    if storage.damage(folder) is None:
      break


def _needed(
  workdir: pathlib.Path, steps: Sequence[int], which: str
) -> Iterable[int]:
  """Returns the steps to be fetched until one is sound."""
  if which == "newest" or not steps:
    return steps
  return [int(files.find_checkpoint(workdir, which).name)]
