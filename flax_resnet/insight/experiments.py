"""Why skip connections work: experiments on trained networks, by name.

Each takes networks that are compared, and gives numbers, a sentence on each
network and a picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any, NamedTuple
import warnings

import jax
from jaxtyping import Array, Float, Int
import numpy as np

from flax_resnet import storage
from flax_resnet.errors import InputError
from flax_resnet.insight import lesions, paths, residuals, shattering, surface
from flax_resnet.models import ResNet
from flax_resnet.models.variables import initial_variables, Variables
from flax_resnet.weights import load_pretrained

# Checkpoints of a run that are measured, at most.
MAX_STATES = 40


@dataclasses.dataclass(frozen=True)
class Subject:
  """A trained network, and images for it.

  Attributes:
    name: its name in pictures.
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of it.
    images: normalized images.
    labels: labels of the images.
    workdir: folder of its run; None of weights without a run.
    seed: seed that its first variables were drawn by; None if they were not.
  """

  name: str
  model: ResNet
  variables: Variables
  images: Float[Array, "b h w c"]
  labels: Int[Array, " b"]
  workdir: pathlib.Path | None = None
  seed: int | None = None

  def untrained(self, seed: int) -> Variables:
    """Returns variables as they are drawn before training."""
    _, height, width, channels = self.images.shape
    shape = (height, width, channels)
    return initial_variables(self.model, jax.random.key(seed), shape)

  def states(self) -> Iterator[tuple[int, Variables]]:
    """Yields steps of the run with the variables then, from first to last.

    Of a run, those of its kept checkpoints, evenly chosen where there are many,
    and before them those that its seed draws; else step 0 with the weights.

    Raises:
      WeightsError: for a checkpoint that cannot be read.
    """
    if self.workdir is None:
      yield 0, self.variables
      return
    if self.seed is not None:
      yield 0, self.untrained(self.seed)
    directory = self.workdir / "checkpoints"
    steps = sorted(storage.checkpoint_steps(directory))
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), MAX_STATES))
    for step in (steps[round(n)] for n in chosen):
      folder = directory / str(step)
      if (damage := storage.damage(folder)) is not None:
        warnings.warn(storage.describe_damage({folder: damage}), stacklevel=2)
        continue
      yield step, load_pretrained(folder).variables


class Found(NamedTuple):
  """What an experiment gives.

  Attributes:
    report: its numbers by the names of the networks.
    sentences: a sentence on each network, with its name.
    files: files of the picture.
  """

  report: dict[str, Any]
  sentences: list[str]
  files: list[pathlib.Path]


def remove_blocks(
  subjects: Sequence[Subject], seed: int, data: str, path: pathlib.Path
) -> Found:
  """Returns how networks do without some of their blocks, see `lesion`."""
  found = {
    it.name: lesions.lesion(
      it.model, it.variables, it.images, it.labels, seed=seed
    )
    for it in subjects
  }
  sentences = []
  for name, each in found.items():
    without = {
      block: accuracy
      for block, accuracy in zip(each.names, each.without, strict=True)
      if accuracy is not None
    }
    if not without:  # Of a plain net whose blocks all change the shape.
      sentences.append(
        f"{name}: {each.intact:.1%} as trained; no block can be removed"
      )
      continue
    worst = min(without, key=without.__getitem__)
    best = max(without, key=without.__getitem__)
    sentences.append(
      f"{name}: {each.intact:.1%} as trained, {without[best]:.1%} without "
      f"{best} and {without[worst]:.1%} without {worst}, the block that it can "
      "spare best and that which it can spare least"
    )
  files = lesions.draw(
    found, f"Without some of its blocks: {_images(subjects, data)}", path
  )
  return Found(_plain(found), sentences, files)


def draw_surface(
  subjects: Sequence[Subject],
  seed: int,
  data: str,
  path: pathlib.Path,
  points: int = 21,
) -> Found:
  """Returns the loss around networks, see `loss_surface`."""
  found = {
    it.name: surface.loss_surface(
      it.model, it.variables, it.images, it.labels, points, seed=seed
    )
    for it in subjects
  }
  sentences = []
  for it in subjects:
    each, guess = found[it.name], math.log(it.model.num_classes)
    sentences.append(
      f"{it.name}: the loss is {each.center:.3g} in the middle, and below the "
      f"{guess:.3g} of a guess on {each.share_below(guess):.0%} of the plane"
    )
  files = surface.draw(
    found, f"The loss around the network: {_images(subjects, data)}", path
  )
  return Found(_plain(found), sentences, files)


def shatter_gradients(
  subjects: Sequence[Subject], seed: int, data: str, path: pathlib.Path
) -> Found:
  """Returns correlations of gradients along a line, see `autocorrelation`.

  The line leads from the first image to the last in as many points as there are
  images. Besides the networks, they are measured as they are drawn.
  """
  found, sentences = {}, []
  for it in subjects:
    points = shattering.line(it.images[0], it.images[-1], len(it.images))
    for label, variables in (
      (it.name, it.variables),
      (f"{it.name}, untrained", it.untrained(seed)),
    ):
      found[label] = shattering.autocorrelation(it.model, variables, points)
      sentences.append(
        f"{label}: gradients one step of {len(points) - 1} apart have a "
        f"correlation of {found[label][1]:.2f}"
      )
  files = shattering.draw(
    found,
    f"Gradients at {len(subjects[0].images)} points between two images of "
    f"{data}",
    path,
  )
  return Found(_plain(found), sentences, files)


def trace_gradients(
  subjects: Sequence[Subject], seed: int, data: str, path: pathlib.Path
) -> Found:
  """Returns the gradient by the length of its paths, see `trace_paths`.

  Besides the networks, they are measured as they are drawn.
  """
  found, sentences = {}, []
  for it in subjects:
    for label, variables in (
      (it.name, it.variables),
      (f"{it.name}, untrained", it.untrained(seed)),
    ):
      found[label] = paths.trace_paths(
        it.model, variables, it.images, it.labels, seed=seed
      )
      depth, blocks = found[label].effective_depth, len(it.model.block_names)
      sentences.append(
        f"{label}: the gradient comes through {depth:.2f} of {blocks} blocks"
      )
  files = paths.draw(
    found, f"The gradient by path: {_images(subjects, data)}", path
  )
  report = {
    name: {
      "norms": each.norms,
      "shares": each.shares,
      "effective_depth": each.effective_depth,
    }
    for name, each in found.items()
  }
  return Found(report, sentences, files)


def follow_residuals(
  subjects: Sequence[Subject], seed: int, data: str, path: pathlib.Path
) -> Found:
  """Returns how large F(x) is beside x, see `measure_residuals`."""
  del seed  # Nothing is drawn.
  found, report, sentences = {}, {}, []
  for it in subjects:
    each = residuals.measure_residuals(it.model, it.states(), it.images)
    found[it.name], medians = each, each.medians()
    first, last = min(medians), max(medians)
    low, high = (
      int(x) for x in (medians[last].argmin(), medians[last].argmax())
    )
    text = (
      f"{it.name}: F(x) is {medians[last][low]:.2g} ({each.names[low]}) to "
      f"{medians[last][high]:.2g} ({each.names[high]}) of x"
    )
    if first < last:
      smaller = int((medians[last] < medians[first]).sum())
      text += (
        f" at step {last:,}, and smaller than at step {first:,} in {smaller} "
        f"of {len(each.names)} blocks"
      )
    sentences.append(text)
    report[it.name] = {
      "blocks": list(each.names),
      "median": {step: x.tolist() for step, x in medians.items()},
      "quantiles": {
        f"{share:g}": np.quantile(each.last, share, axis=1).tolist()
        for share in (0.1, 0.5, 0.9)
      },
    }
  files = residuals.draw(
    found, f"F(x) beside x: {_images(subjects, data)}", path
  )
  return Found(report, sentences, files)


class Experiment(NamedTuple):
  """An experiment.

  Attributes:
    run: function of the networks, a seed, what the images are, "cifar10 test",
      and the path of the picture.
    images: number of images by default.
  """

  run: Callable[[Sequence[Subject], int, str, pathlib.Path], Found]
  images: int


EXPERIMENTS: Mapping[str, Experiment] = {
  "lesions": Experiment(remove_blocks, 1000),
  "surface": Experiment(draw_surface, 500),
  "shattering": Experiment(shatter_gradients, 64),
  "paths": Experiment(trace_gradients, 128),
  "residuals": Experiment(follow_residuals, 128),
}


def run_experiment(
  name: str,
  subjects: Sequence[Subject],
  out: pathlib.Path,
  seed: int,
  data: str,
) -> tuple[list[str], list[pathlib.Path]]:
  """Compares networks by an experiment; writes NAME.json and its picture.

  Args:
    name: one of `EXPERIMENTS`.
    subjects: the networks.
    out: folder to write to, which is made if it is not there.
    seed: seed of what is drawn.
    data: what the images are, "cifar10 test".

  Returns:
    Sentences on the networks, and the files that were written.

  Raises:
    InputError: if two networks have one name.
    ValueError: for a network that an experiment is not made for.
  """
  names = [subject.name for subject in subjects]
  if twice := next((x for x in names if names.count(x) > 1), None):
    raise InputError(f"two networks are called {twice}: name each once")
  out.mkdir(parents=True, exist_ok=True)  # Before the work, if it cannot be.
  found = EXPERIMENTS[name].run(subjects, seed, data, out / name)
  report = {
    "experiment": name,
    "seed": seed,
    "images": len(subjects[0].images),
    "data": data,
    "networks": found.report,
  }
  storage.write_json(out / f"{name}.json", report)
  return found.sentences, [out / f"{name}.json", *found.files]


def _images(subjects: Sequence[Subject], data: str) -> str:
  return f"{len(subjects[0].images):,} images of {data}"


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns results with lists in the place of arrays."""

  def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
      return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      fields = dataclasses.fields(value)
      return {field.name: plain(getattr(value, field.name)) for field in fields}
    return value

  return {name: plain(each) for name, each in found.items()}
