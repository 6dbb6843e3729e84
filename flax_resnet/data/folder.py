"""An image folder as a source: a folder a class, nothing to prepare."""

from collections.abc import Iterator, Sequence
import contextlib
import operator
import os
import pathlib
import stat
from typing import SupportsIndex

from flax_resnet.data import splits
from flax_resnet.data.jpeg import ImageError
from flax_resnet.data.sources import Record

# Of the files that are taken for images.
ENDINGS = (
  *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
  *(".ppm", ".pgm"),
)
# Of a file: what a TIFF of `decoding.MAX_PIXELS` has with 16 bits a channel.
MAX_BYTES = 2**30


class FolderSource:
  """The images of `root/SPLIT/CLASS/**` or, undivided, of `root/CLASS/**`.

  An undivided folder is one split, "train". A part of a split, such as
  "train[:80%]", is taken of a seeded order in which all classes are spread
  evenly; the whole is in the order of the file names.

  Args:
    root: The folder.
    split: In TFDS's notation.
    seed: Of the order that parts are taken of.
    class_names: By label, of the split that is trained on; None for the names
      of the folders, sorted.
    strict: Whether a class without an image is an error.

  Raises:
    ValueError: When there are no classes, or not those of `class_names`.
    FileNotFoundError: When there is no such folder.
  """

  channels = 3

  def __init__(
    self,
    root: str | os.PathLike,
    split: str,
    *,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    strict: bool = True,
  ):
    folder = _folder_of_split(pathlib.Path(os.path.expanduser(root)), split)
    found = _subfolders(folder)
    self.class_names = list(class_names or found)
    _check_classes(folder, found, self.class_names, strict)
    files = [
      (path, label)
      for label, name in enumerate(self.class_names)
      for path in _images(folder / name, strict and name in found)
    ]
    if not files:
      raise ValueError(f"{folder} has no images in the folders of its classes")
    base = split.split("[")[0]
    _, chosen = splits.part(split, {base: len(files)})
    if "[" in split:
      order = splits.mixed_order([label for _, label in files], seed)
      chosen = order[chosen]
    self._files = [files[index] for index in chosen]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: SupportsIndex) -> Record:
    path, label = self._files[operator.index(index)]
    image = read_file(path)
    if not image:
      raise ImageError("the file is empty")
    if image.startswith(b"GIF8") and not path.lower().endswith(".gif"):
      # An animation may be behind it, of which one frame would be seen.
      raise ImageError("the file is a GIF under another name")
    return {"image": image, "label": label}

  def name(self, index: SupportsIndex) -> str:
    """Returns the path of a record's file."""
    return self._files[operator.index(index)][0]


def _folder_of_split(root: pathlib.Path, split: str) -> pathlib.Path:
  if not root.is_dir():
    raise FileNotFoundError(
      f"root is {root}, where there is no folder: give the path of one that "
      "holds a folder a class, or train and val with these"
    )
  base = split.split("[")[0]
  if (root / base).is_dir():
    return root / base
  if base == "train":
    return root
  there = ", ".join(_subfolders(root)[:10]) or "nothing"
  raise ValueError(
    f"{root} has no folder {base!r} for the split {split!r}: there is {there}; "
    "of an undivided folder use parts, 'train[:80%]' and 'train[80%:]'"
  )


def _subfolders(folder: pathlib.Path) -> list[str]:
  with os.scandir(folder) as entries:
    return sorted(
      e.name for e in entries if e.is_dir() and not e.name.startswith(".")
    )


def _check_classes(
  folder: pathlib.Path, found: list[str], wanted: list[str], strict: bool
) -> None:
  if len(wanted) < 2:
    raise ValueError(
      f"{folder} holds {len(found)} folder{'s' * (len(found) != 1)} of a class "
      f"({', '.join(found) or 'none'}): there must be 2 at least to tell apart"
    )
  if unknown := sorted(set(found) - set(wanted)):
    raise ValueError(
      f"{folder} has classes that are not trained on: {', '.join(unknown[:5])}"
    )
  if strict and (missing := sorted(set(wanted) - set(found))):
    raise ValueError(
      f"{folder} lacks classes that are trained on: {', '.join(missing[:5])}; "
      "add them, or set on_error='skip' to go without"
    )


def _images(folder: pathlib.Path, strict: bool) -> list[str]:
  """Returns the image files of a class, sorted."""
  found = sorted(images_below(folder))
  if strict and not found:
    raise ValueError(
      f"class folder {folder} has no images ({', '.join(ENDINGS)}): remove it, "
      "or set on_error='skip' to keep a class without any"
    )
  return found


def images_below(folder: str | os.PathLike) -> Iterator[str]:
  """Yields the image files in a folder and below.

  Links are followed. Each folder is looked into once, as links may lead in
  circles; one that cannot be looked into counts as empty.
  """
  waiting, seen = [os.fspath(folder)], set()
  while waiting:
    where = waiting.pop()
    with contextlib.suppress(OSError):
      status = os.stat(where)
      if (this := (status.st_dev, status.st_ino)) in seen:
        continue
      seen.add(this)
      with os.scandir(where) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
          # A link to itself is an error to `entry.is_dir`.
          if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
            waiting.append(entry.path)
          elif _is_image(entry.name):
            yield entry.path


def read_file(path: str | os.PathLike) -> bytes:
  """Returns the content of an image file.

  Raises:
    ImageError: When it cannot be read, or is longer than any image is.
  """
  try:
    status = os.stat(path)
    # A pipe would be waited for, and a device may have no end.
    if not stat.S_ISREG(status.st_mode):
      raise ImageError("the file cannot be read: it is a pipe or a device")
    if status.st_size > MAX_BYTES:
      raise ImageError(
        f"the file has {status.st_size:,} bytes, more than {MAX_BYTES:,}: "
        "it would fill the memory"
      )
    with open(path, "rb") as file:
      # No more than was checked; Python takes the memory for it beforehand.
      return file.read(status.st_size)
  except OSError as error:
    raise ImageError(f"the file cannot be read: {error.strerror}") from error


def _is_image(name: str) -> bool:
  return name.lower().endswith(ENDINGS) and not name.startswith(".")
