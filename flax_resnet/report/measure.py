"""From the workdir of a run to all that its page shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, TypeVar
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet import storage
from flax_resnet.errors import InputError
from flax_resnet.insight.grad_cam import grad_cam
from flax_resnet.insight.mistakes import Mistake, Mistakes
from flax_resnet.insight.probe import Probe
from flax_resnet.insight.study import TrainedRun
from flax_resnet.models import ResNet
from flax_resnet.models.variables import count_parameters, Variables
from flax_resnet.training.log import has_evaluation, read_rows, Row
from flax_resnet.weights.files import read_devices

T = TypeVar("T")
# Images that go through the network for gradients and responses, about.
PROBE_IMAGES = 128
_PACKAGE = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a network.

  Attributes:
    name: "stem", "stage1", ..., "head".
    blocks: number of its residual blocks.
    skip: "identity", or "none" in a plain net.
    first_skip: that of the first block: "projection" where it has parameters.
    shape: [h, w, c] of its map; empty for the head.
    parameters: number of its parameters.
  """

  name: str
  blocks: int
  skip: str
  first_skip: str
  shape: tuple[int, ...]
  parameters: int


@dataclasses.dataclass(frozen=True)
class Example:
  """An image with where the network looks, for a class and for its own.

  Attributes:
    mistake: the example.
    cam: float [h, w]: Grad-CAM of the predicted class.
    cam_of_label: float [h, w]: that of the class of the example.
  """

  mistake: Mistake
  cam: np.ndarray
  cam_of_label: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
  """All that the page shows of a run; None or empty is what is missing.

  Attributes:
    name: name of the run.
    workdir: its folder.
    config: its recipe.
    rows: rows of its metrics.jsonl.
    problems: sentences on what is missing.
    step: step of the checkpoint that was measured.
    devices: devices that it was trained on, and the version of JAX.
    class_names: names of the classes by label.
    stages: the network.
    mistakes: what it gets wrong on the evaluation split.
    errors: its most confident mistakes.
    unsure: what it hardly recognized.
    before: measures of the blocks before training.
    after: measures of the blocks after training.
  """

  name: str
  workdir: pathlib.Path
  config: Mapping[str, Any]
  rows: Sequence[Row]
  problems: Sequence[str] = ()
  step: int | None = None
  devices: str | None = None
  class_names: Sequence[str] = ()
  stages: Sequence[Stage] = ()
  mistakes: Mistakes | None = None
  errors: Sequence[Example] = ()
  unsure: Sequence[Example] = ()
  before: Probe | None = None
  after: Probe | None = None

  @property
  def evaluations(self) -> list[Row]:
    """The rows with an evaluation."""
    return [row for row in self.rows if has_evaluation(row)]

  @property
  def network(self) -> str:
    """The network and the data set: "cifar_resnet20 on cifar10"."""
    model, data = (
      self.config.get(key, {}).get("name", "?") for key in ("model", "data")
    )
    return f"{model} on {data}"


def measure(name: str, workdir: pathlib.Path, keep: int = 10) -> Measured:
  """Returns all that the page shows of a run; nothing of the run is touched.

  The evaluation split is read batch by batch, and no more than `keep` images of
  each kind are kept.

  Args:
    name: name of the run on the page.
    workdir: its folder.
    keep: number of mistakes, and of examples hardly recognized; default 10.

  Raises:
    InputError: if there is no run, or nothing of it to show.
  """
  config = storage.read_config(workdir)
  rows = read_rows(workdir / "metrics.jsonl")
  if any("val/map" in row for row in rows):
    raise InputError(
      f"{workdir} is a run on images of several labels, which report cannot "
      "show: evaluate --json has the average precision of each class"
    )
  problems: list[str] = []
  if not any(map(has_evaluation, rows)):
    problems.append(
      "metrics.jsonl has no evaluation: the run has not come to its first yet"
      if rows
      else "metrics.jsonl has no rows: there are no curves"
    )
  measured = Measured(name, workdir, config, rows, problems)
  with _noted(problems):
    trained = _attempt(lambda: TrainedRun.load(workdir), problems)
    if trained is None:
      if not rows:
        raise InputError(f"{workdir} has nothing to show: {problems[-1]}")
      return measured
    stages = _stages(trained.run.model, trained.after, trained.run.dataset)
    measured = dataclasses.replace(
      measured,
      step=trained.step,
      devices=read_devices(workdir / "checkpoints" / str(trained.step)),
      class_names=trained.run.dataset.class_names,
      stages=stages,
    )
    mistakes = _attempt(lambda: trained.mistakes(keep), problems)
    if mistakes is not None:
      explained = functools.partial(_examples, trained)
      measured = dataclasses.replace(
        measured,
        mistakes=mistakes,
        errors=explained(mistakes.most_confident),
        unsure=explained(mistakes.least_confident),
      )
      problems += _empty_classes(mistakes, measured.class_names)
    group = trained.run.model.norm_group_size or 1
    count = max(group, PROBE_IMAGES // group * group)
    probes = _attempt(lambda: trained.probes(count), problems)
    if probes is not None:
      before, after = probes
      measured = dataclasses.replace(measured, before=before, after=after)
  return measured


def _attempt(make: Callable[[], T], problems: list[str]) -> T | None:
  """Returns what a function makes, or None and a sentence on why not."""
  try:
    return make()
  except (InputError, OSError, ValueError) as error:
    problems.append(" ".join(str(error).split()))
    return None


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
  """Notes the warnings of this package, of damaged checkpoints and images."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    yield
  for warning in caught:
    text = str(warning.message)
    if pathlib.Path(warning.filename).is_relative_to(_PACKAGE):
      problems.append(" ".join(text.split()))


def _empty_classes(
  mistakes: Mistakes, class_names: Sequence[str]
) -> Iterator[str]:
  counts = mistakes.confusion.sum(1)
  empty = [class_names[n] for n in np.flatnonzero(counts == 0).tolist()]
  if empty:
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    yield (
      f"the evaluation split has no image of {', '.join(empty[:5])}{more}: "
      "there is no accuracy of these classes"
    )


def _stages(model: ResNet, variables: Variables, dataset: Any) -> list[Stage]:
  """Returns the parts of a network, first to last."""
  height, width, channels = dataset.image_shape
  maps = jax.eval_shape(
    functools.partial(model.apply, train=False, method="features"),
    variables,
    jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32),
  )
  params = variables["params"]

  def parameters(part: str) -> int:
    return sum(
      count_parameters(tree)
      for name, tree in params.items()
      if name == part or name.startswith(f"{part}_")
    )

  def first_skip(part: str) -> str:
    if model.shortcut == "none":
      return "none"
    has = params.get(f"{part}_block1", {}).get("shortcut")
    return "projection" if has else "identity"

  plain = model.shortcut == "none"
  everywhere = model.shortcut in ("projection_all", "conv")
  stages = [
    Stage("stem", 0, "", "", maps["stem"].shape[1:], parameters("stem"))
  ]
  for number, blocks in enumerate(model.stage_sizes, start=1):
    part = f"stage{number}"
    skip = "none" if plain else "projection" if everywhere else "identity"
    shape = maps[part].shape[1:]
    stages.append(
      Stage(part, blocks, skip, first_skip(part), shape, parameters(part))
    )
  rest = count_parameters(params) - sum(stage.parameters for stage in stages)
  return [*stages, Stage("head", 0, "", "", (), rest)]


def _examples(
  trained: TrainedRun, mistakes: Sequence[Mistake]
) -> list[Example]:
  """Returns examples with where the network looks."""
  if not mistakes:
    return []
  images = trained.run.normalize(
    jnp.asarray(np.stack([mistake.image for mistake in mistakes]))
  )
  cams = (
    np.asarray(
      grad_cam(
        trained.run.model,
        trained.after,
        images,
        [getattr(mistake, key) for mistake in mistakes],
      )
    )
    for key in ("predicted", "label")
  )
  return [Example(*each) for each in zip(mistakes, *cams, strict=True)]
