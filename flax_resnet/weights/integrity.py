"""Whether the files of a checkpoint are those that were written.

Orbax's own formats notice a flipped bit in what describes arrays and not in
the arrays. So the digests of all files lie beside them.
"""

import hashlib
import json
import pathlib

from flax_resnet.weights.documents import read_object

NAME = "digests.json"
# Orbax says in it when a part is complete, after that.
_LATER = ("commit_success.txt", NAME)


def write(folder: pathlib.Path) -> None:
  """Writes the digests of all files in a folder and below into it."""
  (folder / NAME).write_text(json.dumps(_digests(folder), indent=1))


def difference(folder: pathlib.Path) -> str | None:
  """Says which file of a folder is not as it was written; None if all are.

  None, too, where there are no digests, as in a run of before there were any.
  """
  if not (folder / NAME).exists():
    return None
  try:
    written = read_object(folder / NAME)
    found = _digests(folder)
  except (OSError, ValueError) as error:
    return f"{NAME}: {' '.join(str(error).split())}"
  for name in sorted(written.keys() | found.keys()):
    if written.get(name) != found.get(name):
      how = "is missing" if name not in found else "is not as it was written"
      return f"{name} {how}"
  return None


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    path.relative_to(folder).as_posix(): _digest(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in _LATER
  }


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
