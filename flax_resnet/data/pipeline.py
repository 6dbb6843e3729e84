"""Batches, whose order is a function of (seed, step): step 3 of the way.

Batches are {"image": uint8 [b, h, w, c], "label": int32 [b], "mask": bool [b]}.

Hosts, workers and restarts only say who reads a record, and when; `data.order`
says which it is.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import logging
import math
import sys
import warnings

from absl import flags
import grain
import numpy as np

from flax_resnet.data.order import generator, Order, Share
from flax_resnet.data.reading import Batch, blank, Reader, room


@dataclasses.dataclass(frozen=True)
class Workers:
  """Who reads.

  Attributes:
    threads: Threads, of each process; 0 to read when the batch is asked for.
    processes: Processes beside this one; 0 for none. Decoding holds no lock of
      Python's, so threads suffice until Python's own part, about a twentieth
      of the work, fills a core.
  """

  threads: int = 4
  processes: int = 0


def train_batches(
  reader: Reader,
  share: Share,
  *,
  seed: int,
  copies: int = 1,
  workers: Workers = Workers(),
) -> Iterator[Batch]:
  """Yields this host's part of the batch of each step, without end.

  Each record is there once an epoch; batches run across the border of epochs.

  Args:
    reader: Where records come from.
    share: Which part of which batches.
    seed: Of the order, and of the transform's random numbers.
    copies: See `Order`.
    workers: Who reads.

  Yields:
    A batch, with "broken", see `reading.Reader`.
  """
  order = Order(len(reader), seed, share.batch_size, copies)

  def read(start: int, count: int) -> Batch:
    places = share.places(start, count)
    return reader.read(
      order(places), (generator(seed, place) for place in places)
    )

  size = _divisor(share.rows, reader.at_a_time)
  return _batches(read, sys.maxsize // share.rows, share.rows, size, workers)


def train_indices(
  num_records: int, share: Share, *, seed: int, copies: int = 1
) -> Iterator[np.ndarray]:
  """Yields which records `train_batches` has in each batch, int32 [b]."""
  order = Order(num_records, seed, share.batch_size, copies)
  start = 0
  while True:
    yield order(share.places(start, share.rows))
    start += share.rows


def eval_batches(
  reader: Reader, share: Share, *, workers: Workers = Workers()
) -> Iterator[Batch]:
  """Yields this host's part of batches that hold every record once, in order.

  The last batch is filled up with blank images whose `mask` is False.

  Args:
    reader: Where records come from.
    share: Which part of which batches.
    workers: Who reads.

  Yields:
    A batch, with "broken", see `reading.Reader`.
  """
  rng = np.random.default_rng(0)  # Evaluation draws nothing from it.

  def read(start: int, count: int) -> Batch:
    places = share.places(start, count)
    real = places[places < len(reader)]
    rest = blank(reader.image_shape, count - len(real))
    if not len(real):
      return rest
    return _joined([reader.read(real, [rng] * len(real)), rest])

  num_batches = math.ceil(len(reader) / share.batch_size)
  size = _divisor(share.rows, reader.at_a_time)
  return _batches(read, num_batches, share.rows, size, workers)


def _batches(
  read: Callable[[int, int], Batch],
  num_batches: int,
  rows: int,
  size: int,
  workers: Workers,
) -> Iterator[Batch]:
  """Has chunks of `size` rows read ahead: a batch, and one for each worker.

  So memory depends on the size of a batch and not on the number of workers,
  and a batch is complete when the one before it is taken.
  """
  options = grain.ReadOptions(
    num_threads=workers.threads,
    prefetch_buffer_size=(rows // size + workers.threads)
    if workers.threads
    else 0,
  )
  chunks = (
    grain.MapDataset.range(num_batches * (rows // size))
    .map(lambda number: read(number * size, size))
    .to_iter_dataset(options)
  )
  if workers.processes:
    if not flags.FLAGS.is_parsed():  # Grain asks them; absl.app is not used.
      flags.FLAGS.mark_as_parsed()
    chunks = chunks.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers.processes,
        per_worker_buffer_size=math.ceil(rows / size / workers.processes) + 1,
      ),
      worker_init_fn=_tell_alike(),
    )
  return iter(chunks.batch(rows // size, batch_fn=_joined))


def _tell_alike() -> Callable[[int, int], None]:
  """Returns what makes a reading process tell what this one would."""
  filters, form = list(warnings.filters), warnings.formatwarning
  level = logging.getLogger("PIL").level

  def init(worker: int, workers: int) -> None:
    del worker, workers
    # As `filterwarnings` leaves them; a list of its own would not be asked.
    warnings.filters[:] = filters  # pyright: ignore[reportIndexIssue]
    warnings.formatwarning = form
    logging.getLogger("PIL").setLevel(level)

  return init


def _divisor(rows: int, limit: int) -> int:
  """Returns the largest divisor of `rows` that is at most `limit`."""
  return max(n for n in range(1, min(limit, rows) + 1) if rows % n == 0)


def _joined(chunks: Sequence[Batch]) -> Batch:
  if len(chunks) == 1:
    return chunks[0]
  batch = room(
    chunks[0]["image"].shape[1:], sum(len(c["label"]) for c in chunks)
  )
  for key, array in batch.items():
    np.concatenate([chunk[key] for chunk in chunks], out=array)
  return batch
