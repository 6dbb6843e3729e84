"""What tells data apart, so that a run goes on with the data it has begun with.

Neither times nor absolute paths are part of it: the same data in another place
are the same data.
"""

from collections.abc import Iterable, Mapping, Sequence, Sized
import hashlib
from typing import Any

import numpy as np

from flax_resnet.errors import InputError, listing

Identity = Mapping[str, Any]  # JSON values.


def identity(source: Sized) -> Identity:
  """Returns what tells the records of a source apart from others.

  A source says it in a method of this name: "records", their number, and what
  else it knows, such as "classes", the number of records of each class by name,
  and "sha256" of all that is to stay the same.
  """
  of_source = getattr(source, "identity", dict)
  return {"records": len(source), **of_source()}


def identity_of_labels(
  class_names: Sequence[str], labels: Sequence[Any] | np.ndarray, *parts: Any
) -> Identity:
  """Returns "classes" and "sha256" of labeled records.

  Args:
    class_names: names of the classes by label.
    labels: labels of the records, in order; uint8 [n, classes] of several.
    *parts: bytes, or contiguous arrays, that are the records in order.
  """
  labels = np.asarray(labels, np.int32)
  if labels.ndim == 2:
    counts = labels.sum(0)
  else:
    counts = np.bincount(labels, minlength=len(class_names))
  return identity_of_counts(
    class_names, counts, [labels.astype("<i4").tobytes(), *parts]
  )


def identity_of_counts(
  class_names: Sequence[str], counts: np.ndarray, parts: Iterable[Any]
) -> Identity:
  """Returns "classes" and "sha256" of records that are counted already.

  Args:
    class_names: names of the classes by label.
    counts: number of records of each class, int [classes].
    parts: bytes, or contiguous arrays, that are labels and records in order.
  """
  sha256 = hashlib.sha256()
  for part in parts:
    sha256.update(part)
  classes = dict(zip(class_names, counts.tolist(), strict=True))
  return {"classes": classes, "sha256": sha256.hexdigest()}


def check_unchanged(
  before: Mapping[str, Identity],
  now: Mapping[str, Identity],
  *,
  allow_changed: bool = False,
) -> list[str]:
  """Returns lines on how data have changed since a run began; mostly none.

  Args:
    before: identities by split when the run was saved.
    now: identities by split.
    allow_changed: whether the run may go on with other data; default False.

  Raises:
    InputError: if they have changed, unless `allow_changed`.
  """
  changes = [
    f"{split}: {change}"
    for split in now
    if split in before and dict(before[split]) != dict(now[split])
    for change in _changes(before[split], now[split])
  ]
  if not changes:
    return []
  line = "the data are not those that the run began with: " + listing(
    changes, 10
  )
  if not allow_changed:
    raise InputError(
      f"config.data: {line}: bring them back, or go on with these by "
      "--config.data.allow_changed=True"
    )
  return [f"warning: {line}"]


def _changes(before: Identity, now: Identity) -> list[str]:
  """Returns what of two identities differs, at least a sentence."""
  was, has = before.get("classes", {}), now.get("classes", {})
  changes = [f"class {name!r} is gone" for name in was if name not in has]
  changes += [f"class {name!r} is new" for name in has if name not in was]
  changes += [
    f"class {name!r} had {was[name]:,} records and has {has[name]:,}"
    for name in was
    if name in has and was[name] != has[name]
  ]
  if not changes and list(was) != list(has):
    changes = ["the classes have other labels"]
  if not changes:
    changes = [
      f"{key} was {before.get(key)} and is {now.get(key)}"
      for key in sorted(before.keys() | now.keys())
      if key not in ("classes", "sha256") and before.get(key) != now.get(key)
    ]
  return changes or ["other records, or in another order"]
