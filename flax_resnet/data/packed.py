"""Tables of a million records: small, and in memory once for all processes.

A Python object a record would cost a hundred bytes each, in every process that
reads. Here names lie in one buffer, and a process that is sent an array maps
the file in which it lies.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from typing import Any, SupportsIndex
import weakref

import numpy as np

_SMALL = 2**20  # Bytes of an array that is sent as it is.
_CHUNK = 2**15  # Names that are gathered at a time.
# Those of safetensors, in whose format columns are written.
_DTYPES = {"int64": "I64", "int32": "I32", "uint8": "U8"}
_MAX_HEADER = 100_000_000  # Bytes, as safetensors has it.


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where an array lies in a file."""

  path: str
  file: tuple[int, int]  # Device and inode: another may take its name.
  offset: int
  dtype: str
  shape: tuple[int, ...]


class SharedArray:
  """An array that is in memory once, however many processes read it.

  One that does not lie in a file is written to a temporary one when it is first
  sent to another process, which maps it.

  Args:
    array: the array; it must not be changed any more.
  """

  def __init__(self, array: np.ndarray):
    self.array = array
    self._place: _Place | None = None

  def __len__(self) -> int:
    return len(self.array)

  def __getitem__(self, index: Any) -> Any:
    return self.array[index]

  def take(self, indices: np.ndarray) -> "SharedArray":
    """Returns an array of some rows."""
    return SharedArray(self.array[indices])

  def __reduce__(self) -> tuple[Any, ...]:
    if self.array.nbytes > _SMALL:
      with contextlib.suppress(OSError):  # A full disk: send all of it.
        if self._place is None or _inode(self._place.path) != self._place.file:
          self._place = self._spill()
        return _map, (self._place,)
    return SharedArray, (np.array(self.array),)

  def _spill(self) -> _Place:
    """Writes the array to a file that is there as long as this object."""
    descriptor, path = tempfile.mkstemp(prefix="flax_resnet-")
    weakref.finalize(self, _remove, path)
    with open(descriptor, "wb") as file:
      file.write(np.ascontiguousarray(self.array).data)
    return _place(path, 0, self.array.dtype.name, self.array.shape)


def _inode(path: str) -> tuple[int, int]:
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _place(path: str, offset: int, dtype: str, shape: Sequence[int]) -> _Place:
  return _Place(path, _inode(path), offset, dtype, tuple(shape))


def _map(place: _Place) -> SharedArray:
  """Returns the array in a file."""
  if math.prod(place.shape) == 0:  # Which cannot be mapped.
    return SharedArray(np.zeros(place.shape, place.dtype))
  mapped = np.memmap(place.path, place.dtype, "r", place.offset, place.shape)
  if _inode(place.path) != place.file:
    raise OSError(f"{place.path} was replaced while it was read: start again")
  shared = SharedArray(np.asarray(mapped))
  shared._place = place
  return shared


def _remove(path: str) -> None:
  with contextlib.suppress(OSError):
    os.remove(path)


class PackedNames:
  """Names by index, in one buffer.

  Args:
    text: the names, each followed by a NUL, uint8 [bytes].
    ends: where each name ends, after its NUL, int64 [n].
  """

  def __init__(self, text: SharedArray, ends: SharedArray):
    self.text, self.ends = text, ends

  @classmethod
  def pack(cls, chunks: Iterable[tuple[str, Sequence[str]]]) -> "PackedNames":
    """Returns names that are given some at a time.

    Args:
      chunks: pairs of what comes before each of some names, and these.

    Raises:
      ValueError: if a name holds a NUL.
    """
    text, ends = bytearray(), []
    for before, names in chunks:
      if not names:
        continue
      chunk = os.fsencode(before + f"\0{before}".join(names) + "\0")
      (nuls,) = np.nonzero(np.frombuffer(chunk, np.uint8) == 0)
      if len(nuls) != len(names):
        name = next(name for name in names if "\0" in name)
        raise ValueError(f"the name {name!r:.200} holds a NUL")
      ends.append(nuls + (len(text) + 1))
      text += chunk
    return cls(
      SharedArray(np.frombuffer(text, np.uint8)),
      SharedArray(np.concatenate([np.zeros(0, np.int64), *ends])),
    )

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, index: SupportsIndex) -> str:
    row = range(len(self))[index]
    start = self.ends[row - 1] if row else 0
    return os.fsdecode(self.text[start : self.ends[row] - 1].tobytes())

  def joined(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields the bytes of names with a NUL between each two.

    Args:
      rows: indices of the names, int [n]; None (default) for all.
    """
    if rows is None:
      yield self.text[:-1]
      return
    for first in range(0, len(rows), _CHUNK):
      chunk = rows[first : first + _CHUNK]
      starts = np.where(chunk > 0, self.ends[chunk - 1], 0)
      lengths = self.ends[chunk] - starts
      shifts = starts - (np.cumsum(lengths) - lengths)
      places = np.repeat(shifts, lengths) + np.arange(lengths.sum())
      is_last = first + _CHUNK >= len(rows)
      yield self.text[places[:-1] if is_last else places]


def write_columns(
  path: pathlib.Path, columns: Mapping[str, np.ndarray], about: Any
) -> None:
  """Writes arrays to a file, in the format of safetensors.

  Args:
    path: path of the file; it is whole or not there at all.
    columns: arrays by name.
    about: JSON value that says what they were made from.

  Raises:
    OSError: if it cannot be written.
  """
  header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about)}}
  # The largest first, so that each begins at a multiple of its size.
  ordered = sorted(columns.items(), key=lambda item: -item[1].itemsize)
  end = 0
  for name, array in ordered:
    start, end = end, end + array.nbytes
    header[name] = {
      "dtype": _DTYPES[array.dtype.name],
      "shape": list(array.shape),
      "data_offsets": [start, end],
    }
  head = json.dumps(header).encode()
  head = head.ljust(-(-len(head) // 8) * 8)
  # Of a name of its own: other processes may write the same.
  descriptor, partial = tempfile.mkstemp(
    dir=path.parent, prefix=f"{path.name}."
  )
  try:
    with open(descriptor, "wb") as file:
      file.write(len(head).to_bytes(8, "little") + head)
      for _, array in ordered:
        file.write(np.ascontiguousarray(array).data)
    os.replace(partial, path)
  except BaseException:
    _remove(partial)
    raise


def read_columns(
  path: pathlib.Path,
) -> tuple[dict[str, SharedArray], Any] | None:
  """Returns the arrays of `write_columns`, mapped, and what they are about.

  None if there is no such file, or it is damaged.
  """
  dtypes = {code: name for name, code in _DTYPES.items()}
  try:
    with path.open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      if length > _MAX_HEADER:
        return None
      header = json.loads(file.read(length))
    about = json.loads(header.pop("__metadata__")["about"])
    columns = {}
    for name, entry in header.items():
      offset = 8 + length + entry["data_offsets"][0]
      dtype, shape = dtypes[entry["dtype"]], entry["shape"]
      columns[name] = _map(_place(str(path.absolute()), offset, dtype, shape))
  except (OSError, ValueError, LookupError, TypeError, AttributeError):
    return None
  return columns, about


def cache_folder() -> pathlib.Path:
  """Returns the user's folder of indexes, which may not be there yet."""
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(caches, "flax_resnet", "indexes")
