"""Where the images of tar files are, found once and kept in an index.

The shards of a webdataset hold `KEY.jpg` and, beside it, `KEY.cls` or
`KEY.json`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import hashlib
import itertools
import json
import operator
import os
import pathlib
import re
import sys
import tarfile
from typing import Any
import warnings

from etils import epy
import numpy as np

from flax_resnet.data.decoding import ENDINGS
from flax_resnet.data.labels import Codes
from flax_resnet.data.packed import (
  cache_folder,
  PackedNames,
  read_columns,
  SharedArray,
  write_columns,
)
from flax_resnet.data.places import Files, files_at
from flax_resnet.errors import listing

with epy.lazy_imports():
  import tqdm

_VERSION = 1
_MAX_SHARDS = 1_000_000
_MAX_LABEL_BYTES = 2**20
# Shards of a bucket that are looked through at the same time.
_AT_A_TIME = 8
# Folders, and words in the names of files, that are taken for splits.
SPLITS = ("train", "val", "valid", "validation", "dev", "test")
# Key and extension of a member, as webdataset divides its name.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_WITH_LABEL = ("cls", "json")


def shards_of_split(root: str, split: str, files: Files) -> list[str]:
  """Returns the paths, or URLs, of the shards that hold a split."""
  base = split.split("[")[0]
  if "{" in root and not files.is_folder(root):
    shards = sorted(itertools.islice(expand(root), _MAX_SHARDS + 1))
    missing = [shard for shard in shards if not files.is_file(shard)]
    if missing:
      raise FileNotFoundError(
        f"root is {root}, of which {listing(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not there"
      )
  elif files.is_file(root):
    shards = [root]
  elif files.is_folder(root):
    folder = os.path.join(root, base)
    inner = folder if files.is_folder(folder) else root
    shards = sorted(
      os.path.join(inner, name)
      for name in files.names(inner)
      if name.endswith(".tar")
    )
    if shards and inner == folder:
      return shards
  else:
    raise FileNotFoundError(
      f"root is {root}, where there is no folder: give the path of one that "
      "holds .tar files, or a pattern of theirs, train-{000000..000012}.tar"
    )
  words = [_words(_name(shard)) for shard in shards]
  splits = {word for each in words for word in each & {*SPLITS, base}}
  if not splits and base == "train" and shards:
    return shards
  if base not in splits:
    there = listing(sorted(splits), 10) or (
      "'train' alone" if shards else "no .tar file"
    )
    raise ValueError(
      f"{root} has no shards of the split {base!r}: there is {there}; a split "
      f"is a folder {base}, or a word in the names of files, {base}-000000.tar"
    )
  return [s for s, each in zip(shards, words, strict=True) if base in each]


def split_names(root: str) -> list[str]:
  """Returns the splits of shards, "train" where they have none.

  Args:
    root: path or URL of a folder of .tar files, or a pattern of their paths.
  """
  files = files_at(root)
  folders, names = [], []
  if files.is_folder(root):
    for name in files.names(root):
      (names if name.endswith(".tar") else folders).append(name)
  else:
    names = [
      _name(shard) for shard in itertools.islice(expand(root), _MAX_SHARDS)
    ]
  found = {
    folder
    for folder in folders
    if files.is_folder(path := os.path.join(root, folder))
    and any(name.endswith(".tar") for name in files.names(path))
  }
  words = {word for name in names for word in _words(name)}
  found |= words & {*SPLITS}
  return sorted(found) or ["train"]


def _words(name: str) -> set[str]:
  return set(re.findall(r"[^\W\d_]+", name))


def _name(path: str) -> str:
  return os.path.basename(path)


def expand(pattern: str) -> Iterator[str]:
  """Yields the texts that braces stand for, as in a shell.

  "{00..12}" for numbers, as wide as they are written, and "{a,b}", also within
  each other.
  """
  depth, start = 0, pattern.find("{")
  commas = []
  for place in range(start, len(pattern)) if start >= 0 else ():
    sign = pattern[place]
    depth += (sign == "{") - (sign == "}")
    if sign == "," and depth == 1:
      commas.append(place)
    if depth == 0:
      head, tail = pattern[:start], pattern[place + 1 :]
      inner = pattern[start + 1 : place]
      if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") else 0
        middles = (
          f"{number:0{width}}"
          for number in range(int(first), int(last) + step, step)
        )
      else:
        bounds = [start, *commas, place]
        middles = (
          text
          for one, other in itertools.pairwise(bounds)
          for text in expand(pattern[one + 1 : other])
        )
      ends = list(expand(tail))
      yield from (f"{head}{middle}{end}" for middle in middles for end in ends)
      return
  yield pattern


def open_index(
  shards: Sequence[str], label_key: str, files: Files
) -> tuple[dict[str, SharedArray], list[str]]:
  """Returns where the images of shards are, and their labels.

  Returns:
    Columns "offsets", "sizes", "labels" (in the second), "keys_text" and
    "keys_ends" by record, "shard_ends" and "stamps" by shard; and the labels.
  """
  stamps = [files.stamp(shard) for shard in shards]
  about = {"version": _VERSION, "label_key": label_key}
  about["shards"] = [_name(shard) for shard in shards]
  digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
  folder = os.path.dirname(shards[0])
  if not files.in_bucket:
    folder = os.path.realpath(folder)
  place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
  paths = [cache_folder() / f"webdataset-{place}-{digest}.safetensors"]
  if not files.in_bucket:
    beside = pathlib.Path(shards[0]).with_name(f".index-{digest}.safetensors")
    paths.insert(0, beside)
  stale = None
  for path in paths:
    if (read := read_columns(path)) is not None:
      columns, found = read
      if _is_whole(columns, found, about, stamps):
        return columns, found["texts"]
      stale = stale or path
  if stale:
    warnings.warn(
      f"the shards have changed since their index {stale} was made: it is made "
      "again",
      stacklevel=2,
    )
  columns, texts = _scan(shards, label_key, files)
  columns["stamps"] = np.array(stamps, np.int64)
  for path in paths:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      write_columns(path, columns, {**about, "texts": texts})
      break
    except OSError:  # It is made again the next time.
      continue
  return {name: SharedArray(array) for name, array in columns.items()}, texts


def _is_whole(
  columns: dict[str, SharedArray],
  found: Any,
  about: dict[str, Any],
  stamps: list[list[int]],
) -> bool:
  """Returns whether an index is that of the shards as they are now."""
  try:
    known = {key: found[key] for key in about}
    count = int(columns["shard_ends"][-1])
    by_record = ("offsets", "sizes", "labels", "keys_ends")
    return (
      known == about
      and columns["stamps"].array.tolist() == stamps
      and all(len(columns[name]) == count for name in by_record)
    )
  except (LookupError, TypeError):
    return False


def _scan(
  shards: Sequence[str], label_key: str, files: Files
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the columns of `open_index` but for "stamps", and the labels."""
  codes, offsets, sizes, labels, ends = Codes(), [], [], [], []

  def keys() -> Iterator[tuple[str, list[str]]]:
    total = 0
    for records in _each_shard(shards, label_key, files):
      names, where = [], []
      for name, offset, size, text in records:
        names.append(name)
        where.append((offset, size, codes[text]))
      columns = np.array(where, np.int64).reshape(-1, 3)
      offsets.append(columns[:, 0])
      sizes.append(columns[:, 1])
      labels.append(columns[:, 2].astype(np.int32))
      total += len(names)
      ends.append(total)
      yield "", names

  names = PackedNames.pack(keys())
  if not len(names):
    raise ValueError(
      f"{listing(shards)} hold no images ({', '.join(ENDINGS)}): give others"
    )
  columns = {
    "keys_text": names.text.array,
    "keys_ends": names.ends.array,
    "offsets": np.concatenate(offsets),
    "sizes": np.concatenate(sizes),
    "labels": np.concatenate(labels),
    "shard_ends": np.array(ends, np.int64),
  }
  return columns, list(codes)


def _each_shard(
  shards: Sequence[str], label_key: str, files: Files
) -> Iterator[Iterable[tuple[str, int, int, str]]]:
  """Yields the `_records` of each shard, in order; of a bucket read ahead."""
  if not files.in_bucket:
    yield from (_records(shard, label_key, files) for shard in shards)
    return
  pool = futures.ThreadPoolExecutor(_AT_A_TIME)
  try:
    yield from tqdm.tqdm(
      pool.map(lambda shard: [*_records(shard, label_key, files)], shards),
      total=len(shards),
      desc="looking for images",
      unit="shard",
      disable=not sys.stderr.isatty(),
    )
  finally:
    pool.shutdown(cancel_futures=True)


def _records(
  shard: str, label_key: str, files: Files
) -> Iterator[tuple[str, int, int, str]]:
  """Yields the name of each image of a shard, its offset, size and label."""
  by_key = itertools.groupby(_members(shard, files), operator.itemgetter(0))
  for key, members in by_key:
    images, contents = [], {}
    for _, extension, offset, size, content in members:
      if content is not None:
        contents[extension.lower()] = content
      elif f".{extension.lower()}" in ENDINGS:
        images.append((f"{key}.{extension}", offset, size))
    if not images:
      continue
    name, offset, size = images[0]
    if len(images) > 1:
      raise ValueError(
        f"{shard} has several images of {key!r}, {name} and {images[1][0]}: "
        "leave one"
      )
    found = next((each for each in _WITH_LABEL if each in contents), None)
    if found is None:
      raise ValueError(
        f"{name} in {shard} has no label: add {key}.cls, or {key}.json with "
        f"{label_key!r} in it, next to it"
      )
    where = f"{key}.{found} in {shard}"
    yield name, offset, size, _label(contents[found], found, label_key, where)


def _members(
  shard: str, files: Files
) -> Iterator[tuple[str, str, int, int, bytes | None]]:
  """Yields key, extension, offset and size of the members of a shard.

  And the content of those that may hold a label; None of the others.
  """
  size, _ = files.stamp(shard)
  try:
    with (
      files.open(shard) as file,
      tarfile.open(shard, "r:", file) as tar,
    ):
      members: Any = tar  # Its list is not in the types.
      while (member := tar.next()) is not None:
        members.members = []  # It would keep all.
        if member.offset_data + member.size > size:
          raise tarfile.ReadError(f"{member.name} is not there to its end")
        match = _MEMBER.fullmatch(member.name)
        if member.isreg() and match is not None:
          key, extension = match.groups()
          content = None
          if extension.lower() in _WITH_LABEL:
            inner = tar.extractfile(member)
            content = inner.read(_MAX_LABEL_BYTES) if inner else b""
          yield key, extension, member.offset_data, member.size, content
      # A header that is damaged ends an archive, too, as tarfile reads it.
      file.seek(end := tar.offset)
      if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no member and no end at byte {end:,}")
  except (tarfile.TarError, EOFError) as error:
    raise ValueError(
      f"{shard} is cut short, or no tar file that is not compressed ({error}): "
      "write it anew"
    ) from error


def _label(content: bytes, extension: str, key: str, name: str) -> str:
  """Returns the label in a member."""
  try:
    text = content.decode()
    if extension == "json":
      value = json.loads(text)[key]
      if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{key} is {value!r:.100}")
      text = str(value)
  except (LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f"{name} holds no label ({error}): a .cls member holds the name or "
      f"number of a class, a .json one has it as {key!r}"
    ) from error
  if not text.strip():
    raise ValueError(f"{name} holds no label: it is empty")
  return text.strip()


def is_member(header: bytes, name: str, size: int) -> bool:
  """Returns whether a header is that of a member of this name and size."""
  try:
    found = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
  except tarfile.HeaderError:
    return False
  # A name that does not fit there is written before it, and here cut short.
  fits = name.isascii() and len(name) <= tarfile.LENGTH_NAME
  return found.size == size and (found.name == name or not fits)
