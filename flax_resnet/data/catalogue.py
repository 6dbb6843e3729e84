"""What a set's name stands for."""

from collections.abc import Sequence
import dataclasses
import os

from flax_resnet.data import sources
from flax_resnet.data.arrays import open_npz
from flax_resnet.data.folder import FolderSource

# Examples of the synthetic set.
SYNTHETIC_SPLITS = {"train": 1024, "test": 256}
MAX_CLASSES = 1_000_000  # Of it: each has a name.


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the splits of a set are; the attributes are those of `load`."""

  name: str
  data_dir: str | None
  root: str | None
  split_seed: int
  strict: bool

  def open(
    self,
    split: str,
    image_size: int,
    num_classes: int,
    class_names: Sequence[str] | None = None,
  ) -> sources.Source:
    """Returns a split; of the classes of the other one, if these are given."""
    if self.name == "synthetic":
      return _synthetic(split, image_size, num_classes)
    if self.name in ("folder", "npz"):
      if self.root is None:
        raise ValueError(
          f"root is None: give where the {self.name} is, --config.data.root=…"
        )
      if self.name == "npz":
        return open_npz(self.root, split)
      return FolderSource(
        self.root,
        split,
        seed=self.split_seed,
        class_names=class_names,
        strict=self.strict,
      )
    # Slow to import.
    from flax_resnet.data import digits, prepared

    data_dir = self.data_dir and os.path.expanduser(self.data_dir)
    if self.name == "digits":
      digits.prepare(data_dir)
    return prepared.TFDSSource(self.name, split, data_dir)


def _synthetic(
  split: str, image_size: int, num_classes: int
) -> sources.SyntheticSource:
  if split not in SYNTHETIC_SPLITS:
    raise ValueError(
      f"data set 'synthetic' has no split {split!r}: use one of "
      f"{', '.join(SYNTHETIC_SPLITS)}"
    )
  if not 1 <= num_classes <= MAX_CLASSES:
    raise ValueError(
      f"data set 'synthetic' cannot have {num_classes} classes: use 1 to "
      f"{MAX_CLASSES:,}"
    )
  return sources.SyntheticSource(
    SYNTHETIC_SPLITS[split], image_size, num_classes
  )
