"""The part of a network that is not trained, for a time or the whole run."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freezing:
  """What of a network is not trained, and until when.

  Neither gradient, weight decay nor momentum touch it, and nothing is computed
  backwards through it.

  Attributes:
    trunk: whether the head alone is trained; default False.
    stages: number of the first stages that are not trained, with the stem
      before them; 0 for the stem alone; None (default) for nothing.
    batch_stats: whether the frozen part works as in evaluation: with running
      statistics that stay as they are. If not, it works as in training, and
      they move. Default True.
    until: step at which everything is trained; None (default) for never.
  """

  trunk: bool = False
  stages: int | None = None
  batch_stats: bool = True
  until: int | None = None

  def __bool__(self) -> bool:
    return self.trunk or self.stages is not None

  def __str__(self) -> str:
    """Returns what is trained, as the log of a run says it."""
    if self.trunk:
      return "the head alone is trained"
    if self.stages is None:
      return "everything is trained"
    frozen = f" and {self.stages} of the stages" if self.stages else ""
    return f"all but the stem{frozen} is trained"

  @property
  def keeps_all_batch_stats(self) -> bool:
    """Whether no step of the run normalizes with statistics of its batch."""
    return self.trunk and self.batch_stats and self.until is None

  def holds(self, name: str) -> bool:
    """Whether a module, such as "stage1_block1", belongs to the frozen part."""
    if self.trunk:
      return name != "head"
    if self.stages is None:
      return False
    stage = re.match(r"stage(\d+)_", name)
    return name == "stem" or bool(stage and int(stage[1]) <= self.stages)

  def split(self, tree: Mapping[str, Any]) -> tuple[dict, dict]:
    """Returns what is trained and what is frozen, of a tree by module."""
    parts: tuple[dict, dict] = {}, {}
    for name, value in tree.items():
      parts[self.holds(name)][name] = value
    return parts

  def trained(self, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a tree by module that is trained."""
    return self.split(tree)[0]

  def ever_trained(self, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part that is trained at any step of the run."""
    return self.trained(tree) if self.until is None else dict(tree)

  def moving(self, batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of the running statistics that a step may change."""
    return self.trained(batch_stats) if self.batch_stats else dict(batch_stats)

  def mode(self) -> dict[str, Any]:
    """Returns the arguments of the network for a training step."""
    if self.trunk and self.batch_stats:
      return {"train": False}
    if self.stages is not None and self.batch_stats:
      return {"train": True, "frozen_stages": self.stages}
    return {"train": True}


NOTHING = Freezing()
