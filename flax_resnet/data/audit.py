"""What is in a data set, and what is wrong with it, before it is trained on.

Every image is decoded once. Some 30 bytes of each are kept, whatever its size.
"""

import bisect
import collections
from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import hashlib
from typing import Any

from jaxtyping import Int32, UInt64
import numpy as np

from flax_resnet.data.decoding import decode, format_and_mode, MAX_PIXELS
from flax_resnet.data.sources import Source
from flax_resnet.errors import ImageError

_CHUNK = 1024  # Records that are handed to the threads at a time.


@dataclasses.dataclass(frozen=True)
class SplitAudit:
  """The images of a split, all but their pixels.

  Attributes:
    split: name of the split.
    source: its records.
    indices: indices of the records whose images are sound.
    labels: labels of these; where an image has several, numbers of `sets`.
    sets: classes of each label.
    sizes: heights and widths of these, in pixels.
    digests: digests of these: equal where the pixels are.
    formats: number of sound images by format and mode.
    broken: what is wrong with the other images, by the names of their records.
  """

  split: str
  source: Source
  indices: Int32[np.ndarray, " n"]
  labels: Int32[np.ndarray, " n"]
  sets: Sequence[tuple[int, ...]]
  sizes: Int32[np.ndarray, "n 2"]
  digests: UInt64[np.ndarray, "n 2"]
  formats: collections.Counter[str]
  broken: dict[str, str]

  def class_counts(self) -> dict[str, int]:
    """Returns the number of sound images of each class by its name."""
    names = self.source.class_names
    counts = dict.fromkeys(names, 0)
    of_sets = np.bincount(self.labels, minlength=len(self.sets)).tolist()
    for members, count in zip(self.sets, of_sets, strict=True):
      for label in members:
        counts[names[label]] += count
    return counts

  def image(self, row: int) -> dict[str, str]:
    """Returns the split, the name and the class of one of `indices`.

    Of several classes, "class" has their names with commas between them.
    """
    members = self.sets[int(self.labels[row])]
    return {
      "split": self.split,
      "image": self.source.name(int(self.indices[row])),
      "class": ", ".join(self.source.class_names[label] for label in members),
    }


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """Images of equal pixels.

  Attributes:
    images: split, name and class of each, see `SplitAudit.image`.
    across_splits: whether they are in more than one split.
    unequal_labels: whether they are in more than one class.
  """

  images: Sequence[dict[str, str]]

  @property
  def across_splits(self) -> bool:
    return len({image["split"] for image in self.images}) > 1

  @property
  def unequal_labels(self) -> bool:
    return len({image["class"] for image in self.images}) > 1


def audit_split(
  split: str,
  source: Source,
  *,
  max_pixels: int = MAX_PIXELS,
  num_threads: int = 4,
) -> SplitAudit:
  """Reads all records of a split.

  Args:
    split: name of the split.
    source: its records.
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.
    num_threads: threads that decode; default 4.
  """
  count = len(source)
  labels = np.zeros(count, np.int32)
  sizes = np.zeros((count, 2), np.int32)
  digests = np.zeros((count, 2), np.uint64)
  sound = np.zeros(count, bool)
  formats, broken = collections.Counter(), {}
  sets: dict[tuple[int, ...], int] = {
    (label,): label for label in range(len(source.class_names))
  }

  def read(index: int) -> tuple[str, int | np.ndarray] | ImageError:
    """Fills in the row of a record; returns its format and mode, and label."""
    try:
      record = source[index]
      pixels = decode(record["image"], source.channels, max_pixels)
      sizes[index] = pixels.shape[:2]
      digests[index] = _digest(pixels)
      return format_and_mode(record["image"]), record["label"]
    except ImageError as error:
      return error

  with futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
    for start in range(0, count, _CHUNK):
      chunk = range(start, min(start + _CHUNK, count))
      for index, found in zip(chunk, pool.map(read, chunk), strict=True):
        if isinstance(found, ImageError):
          broken[source.name(index)] = str(found)
        else:
          kind, label = found
          if isinstance(label, np.ndarray):
            members = tuple(np.flatnonzero(label).tolist())
            label = sets.setdefault(members, len(sets))
          formats[kind] += 1
          labels[index] = label
          sound[index] = True
  return SplitAudit(
    split,
    source,
    np.flatnonzero(sound).astype(np.int32),
    labels[sound],
    list(sets),
    sizes[sound],
    digests[sound],
    formats,
    broken,
  )


def _digest(pixels: np.ndarray) -> np.ndarray:
  """Returns 128 bits that are equal where size and pixels are: uint64 [2]."""
  digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
  digest.update(np.ascontiguousarray(pixels).data)
  return np.frombuffer(digest.digest(), np.uint64)


def find_duplicates(audits: Sequence[SplitAudit]) -> Iterator[Duplicates]:
  """Yields the images that are more than once in these splits."""
  digests = np.concatenate([audit.digests for audit in audits])
  order = np.lexsort((digests[:, 0], digests[:, 1]))
  ordered = digests[order]
  first = np.ones(len(order), bool)
  first[1:] = (ordered[1:] != ordered[:-1]).any(1)
  starts = np.flatnonzero(first)
  counts = np.diff(np.append(starts, len(order)))
  many = counts > 1
  groups = [
    sorted(order[start : start + count].tolist())
    for start, count in zip(starts[many], counts[many], strict=True)
  ]
  ends = np.cumsum([len(audit.indices) for audit in audits]).tolist()

  def image(row: int) -> dict[str, str]:
    split = bisect.bisect_right(ends, row)
    return audits[split].image(row - (ends[split - 1] if split else 0))

  for group in sorted(groups):
    yield Duplicates(list(map(image, group)))


def report(audits: Sequence[SplitAudit]) -> dict[str, Any]:
  """Returns what is in the splits and what is wrong, as `check --json` has it.

  Wrong are images that are broken, and equal images that are in more than one
  class or in more than one split.
  """
  splits, duplicates = {}, list(find_duplicates(audits))
  for audit in audits:
    splits[audit.split] = {
      "images": len(audit.source),
      "classes": audit.class_counts(),
      "formats": dict(audit.formats.most_common()),
      "height": _range(audit.sizes[:, 0]),
      "width": _range(audit.sizes[:, 1]),
      "broken": audit.broken,
    }
  return {
    "splits": splits,
    "duplicates": [
      {
        "across_splits": each.across_splits,
        "unequal_labels": each.unequal_labels,
        "images": each.images,
      }
      for each in duplicates
    ],
    "wrong": {
      "broken": sum(len(audit.broken) for audit in audits),
      "across_splits": sum(each.across_splits for each in duplicates),
      "unequal_labels": sum(each.unequal_labels for each in duplicates),
    },
  }


def _range(lengths: np.ndarray) -> list[int]:
  """Returns the smallest length, the median and the largest; [] of none."""
  if not len(lengths):
    return []
  return [int(f(lengths)) for f in (np.min, np.median, np.max)]
