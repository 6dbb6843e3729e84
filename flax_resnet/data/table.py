"""Manifests, as they are read: paths, labels and splits in a table."""

from collections.abc import Iterable, Iterator, Sequence
import csv
import dataclasses
import functools
import io
import itertools
import pathlib
from typing import Any, SupportsIndex

from etils import epy
import numpy as np

from flax_resnet.data.labels import Codes
from flax_resnet.data.packed import PackedNames, SharedArray
from flax_resnet.data.sources import Columns, no_split
from flax_resnet.errors import listing

with epy.lazy_imports():  # An extra.
  import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

_DIALECTS = {".csv": ("excel", ","), ".tsv": ("excel-tab", "\t")}
_BLOCK = 2**18  # Characters that are read at a time.
_PARQUET = ".parquet"
# Lines that are read at a time: so few that their objects are gone before
# Python looks for garbage among them.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class _Lines:
  """Some lines of a manifest.

  Attributes:
    numbers: numbers of the lines, int [n].
    columns: paths, labels and, if there are any, splits.
  """

  numbers: np.ndarray
  columns: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Table:
  """What a manifest holds.

  Attributes:
    title: path of the file.
    unit: what its records are: "line" or "row".
    paths: paths of the images.
    labels: number of each record's label in `texts`, int32 [n].
    texts: labels, each once.
    splits: number of each record's split in `split_names`, int32 [n], or None.
    split_names: names of the splits.
    lines: number of each record's line, from 1, int32 [n].
  """

  title: str
  unit: str
  paths: PackedNames
  labels: SharedArray
  texts: Sequence[str]
  splits: SharedArray | None
  split_names: Sequence[str]
  lines: SharedArray

  def line(self, row: SupportsIndex) -> str:
    """Returns "line 7 of labels.csv"."""
    return f"{self.unit} {self.lines[row]} of {self.title}"

  def rows_of(self, split: str) -> np.ndarray:
    """Returns the records of the split that a split is a part of, int32 [n].

    Raises:
      ValueError: if there is none.
    """
    if not len(self.paths):
      raise ValueError(f"{self.title} has no {self.unit} after its first one")
    base = split.split("[")[0]
    if self.splits is None:
      sizes = {"train": len(self.paths)}
      rows = np.arange(len(self.paths), dtype=np.int32)
    else:
      counts = np.bincount(self.splits.array, minlength=len(self.split_names))
      sizes = dict(zip(self.split_names, counts.tolist(), strict=True))
      code = [*self.split_names, base].index(base)
      rows = np.flatnonzero(self.splits.array == code).astype(np.int32)
    if base not in sizes:
      raise ValueError(f"{self.title}: {no_split(split, sizes)}")
    return rows


def open_table(path: pathlib.Path, columns: Columns) -> Table:
  """Returns what a manifest holds; of the last one without reading it again."""
  if path.suffix.lower() not in (*_DIALECTS, _PARQUET):
    raise ValueError(
      f"root is {path}: give the path of a manifest, .csv, .tsv or .parquet"
    )
  try:
    status = path.stat()
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"root is {path}, which is not there: give the path of a manifest, .csv, "
      ".tsv or .parquet"
    ) from error
  return _read(path, columns, status.st_mtime_ns, status.st_size)


# Those to train on and those to evaluate on are mostly in one file.
@functools.lru_cache(maxsize=1)
def _read(
  path: pathlib.Path, columns: Columns, modified: int, size: int
) -> Table:
  del modified, size  # They tell whether it is the same file still.
  is_parquet = path.suffix.lower() == _PARQUET
  read = _parquet_rows if is_parquet else _csv_lines
  texts, splits = Codes(), Codes()
  lines, label_codes, split_codes, hashes = [], [], [], []

  def paths() -> Iterator[tuple[str, Sequence[str]]]:
    for some in read(path, columns):
      some_paths, labels, *in_splits = some.columns
      lines.append(some.numbers.astype(np.int32))
      label_codes.append(texts.of(labels))
      split_codes.extend(map(splits.of, in_splits))
      each = map(hash, some_paths)
      hashes.append(np.fromiter(each, np.int64, len(some_paths)))
      yield "", some_paths

  table = Table(
    str(path),
    "row" if is_parquet else "line",
    PackedNames.pack(paths()),
    SharedArray(_concatenated(label_codes)),
    list(texts),
    SharedArray(_concatenated(split_codes)) if split_codes else None,
    list(splits),
    SharedArray(_concatenated(lines)),
  )
  _check_paths(table, hashes)
  return table


def _concatenated(parts: Iterable[np.ndarray]) -> np.ndarray:
  return np.concatenate([np.zeros(0, np.int32), *parts])


def _check_paths(table: Table, hashes: Sequence[np.ndarray]) -> None:
  """Raises ValueError for an empty path, or for one that has two labels.

  Args:
    table: the manifest.
    hashes: hashes of the paths, int64 [n], in chunks.
  """
  lengths = np.diff(table.paths.ends.array, prepend=0)
  if (lengths == 1).any():
    raise ValueError(f"{table.line(int(np.argmax(lengths == 1)))} has no path")
  whole = np.concatenate([np.zeros(0, np.int64), *hashes])
  ordered = np.sort(whole)
  if not (ordered[1:] == ordered[:-1]).any():
    return
  order = np.argsort(whole, kind="stable")
  whole, codes = whole[order], table.labels[order]
  (places,) = np.nonzero((whole[1:] == whole[:-1]) & (codes[1:] != codes[:-1]))
  for first, second in zip(order[places], order[places + 1], strict=True):
    if table.paths[first] == table.paths[second]:
      labels = [table.texts[table.labels[row]] for row in (first, second)]
      raise ValueError(
        f"{table.unit}s {table.lines[first]} and {table.lines[second]} of "
        f"{table.title} give {table.paths[first]} the labels "
        f"{labels[0]!r:.100} and {labels[1]!r:.100}: leave one"
      )


def _csv_lines(path: pathlib.Path, columns: Columns) -> Iterator[_Lines]:
  """Yields the lines of a file of text, some thousands at a time."""
  dialect, delimiter = _DIALECTS[path.suffix.lower()]
  last = 0  # Line that is read already.
  with path.open(encoding="utf-8-sig", newline="") as file:
    try:
      block = file.readline()
      header = block.rstrip("\r\n").split(delimiter) if block else []
      if '"' not in block:
        wanted = _places(path, header, columns)
        last = 1
        while block := file.read(_BLOCK) + file.readline():
          if (cells := _plain_cells(block, delimiter, len(header))) is None:
            break
          count = len(cells) // len(header)
          yield _Lines(
            np.arange(last + 1, last + count + 1),
            [cells[place :: len(header)] for place in wanted],
          )
          last += count
      reader = csv.reader(
        itertools.chain(io.StringIO(block, newline=""), file),
        dialect,
        strict=True,
      )
      yield from _quoted_lines(path, columns, reader, header, last)
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{path} is not UTF-8 text ({error.reason}, after line {last}): save "
        "it as UTF-8"
      ) from error


def _plain_cells(block: str, delimiter: str, width: int) -> list[str] | None:
  """Returns the cells of whole lines, in order: many times as fast as `csv`.

  None where there is more to it than the same number of cells in each line.

  Args:
    block: lines.
    delimiter: sign between cells.
    width: number of cells of a line.
  """
  if "\r" in block:
    block = block.replace("\r\n", "\n")
  if '"' in block or "\r" in block:
    return None
  if not block.endswith("\n"):
    block += "\n"
  signs = np.frombuffer(block.encode(), np.uint8)
  signs = signs[(signs == ord(delimiter)) | (signs == ord("\n"))]
  line = [ord(delimiter)] * (width - 1) + [ord("\n")]
  if len(signs) % width or (signs.reshape(-1, width) != line).any():
    return None
  return block.replace("\n", delimiter).split(delimiter)[:-1]


def _quoted_lines(
  path: pathlib.Path,
  columns: Columns,
  reader: Any,
  header: Sequence[str],
  last: int,
) -> Iterator[_Lines]:
  """Yields the lines of a file of text from somewhere on, some at a time.

  Args:
    path: path of the file.
    columns: names of the columns.
    reader: reader of `csv`, after `last`.
    header: cells of the first line, if `last` is not 0.
    last: number of the line before.
  """
  try:
    if last == 0:
      header = next(reader, [])
    wanted = _places(path, header, columns)
    rows, numbers = [], []
    for row in itertools.chain(reader, [None]):
      if row:
        rows.append(row)
        numbers.append(last + reader.line_num)
      if len(rows) == _CHUNK or row is None:
        _check_widths(path, rows, numbers, len(header))
        yield _Lines(
          np.array(numbers, np.int32),
          [[row[place] for row in rows] for place in wanted],
        )
        rows, numbers = [], []
  except csv.Error as error:
    raise ValueError(
      f"line {last + reader.line_num} of {path} cannot be read: {error}"
    ) from error


def _check_widths(
  path: pathlib.Path,
  rows: Sequence[Sequence[str]],
  numbers: Sequence[int],
  width: int,
) -> None:
  """Raises ValueError for a line of more or fewer cells than the first."""
  if set(map(len, rows)) - {width}:
    row, line = next(
      pair for pair in zip(rows, numbers, strict=True) if len(pair[0]) != width
    )
    raise ValueError(
      f"line {line} of {path} has {len(row)} cells, and the first line "
      f"{width}: a cell with a separator in it needs quotes"
    )


def _places(
  path: pathlib.Path, header: Sequence[str], columns: Columns
) -> list[int]:
  """Returns where path, label and, if there is such a column, split are.

  Raises:
    ValueError: if a column is missing, or there are two of its name.
  """
  places = []
  for key in ("path_column", "label_column", "split_column"):
    name = getattr(columns, key)
    if header.count(name) > 1:
      raise ValueError(f"{path} has two columns {name!r}: rename one")
    if name in header:
      places.append(header.index(name))
    elif key != "split_column" or name != Columns.split_column:
      other = next((sign for sign in ";\t|" if sign in "".join(header)), None)
      if other and len(header) == 1:
        raise ValueError(
          f"{path} separates its cells by {other!r}: write it with commas, or "
          "with tabs as .tsv"
        )
      raise ValueError(
        f"{path} has no column {name!r}: it has "
        f"{listing(header, 10) or 'none'}; set {key} to one of them"
      )
  return places


def _parquet_rows(path: pathlib.Path, columns: Columns) -> Iterator[_Lines]:
  """Yields the rows of a parquet file, some thousands at a time."""
  try:
    file = pq.ParquetFile(path)
  except ImportError as error:
    raise ValueError(
      f"{path} needs pyarrow: pip install 'flax_resnet[parquet]'"
    ) from error
  except Exception as error:  # pyarrow: whatever it meets.
    raise ValueError(f"{path} is not a parquet file: {error}") from error
  with file:
    header = file.schema_arrow.names
    wanted = [header[place] for place in _places(path, header, columns)]
    first = 1
    for batch in file.iter_batches(32 * _CHUNK, columns=wanted):
      texts = [
        ["" if v is None else str(v) for v in batch.column(name).to_pylist()]
        for name in wanted
      ]
      yield _Lines(np.arange(first, first + len(batch)), texts)
      first += len(batch)
