"""From a run, or untrained networks, to inspect.json and its pictures."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, cast

import jax
import numpy as np

from flax_resnet.insight import figures
from flax_resnet.insight.mistakes import find_mistakes, Mistakes
from flax_resnet.insight.probe import Probe, probe
from flax_resnet.insight.trained import Trained
from flax_resnet.models import create_model
from flax_resnet.models.start import initial_variables
from flax_resnet.training.workdir import write_json


def study_run(workdir: pathlib.Path, num_images: int) -> list[pathlib.Path]:
  """Measures a run before and after its training.

  Args:
    workdir: Of the run; what is found is written there.
    num_images: Of the training set, that go through the network together.

  Returns:
    The files that were written.

  Raises:
    InputError: When there is no such run, or nothing is saved yet.
  """
  trained = Trained.load(workdir)
  before, after = trained.probes(num_images)
  found = find_mistakes(
    _probabilities(trained),
    trained.run.eval_batches(),
    trained.run.model.num_classes,
  )
  names = trained.run.dataset.class_names
  pictures = _draw_run(trained.title, before, after, found, names, workdir)
  report = {
    "net": trained.run.title(),
    "step": int(trained.after.step),
    "images": before.images,
    "before": dataclasses.asdict(before),
    "after": dataclasses.asdict(after),
    "mistakes": _as_json(found, names),
  }
  return written(workdir, report, pictures)


def _draw_run(
  net: str,
  before: Probe,
  after: Probe,
  found: Mistakes,
  class_names: Sequence[str],
  out: pathlib.Path,
) -> list[str]:
  """Writes the pictures of a run and returns their names."""
  series = [
    ("before training", before, {"color": figures.BEFORE}),
    ("after training", after, {"color": figures.SKIP}),
  ]
  figures.gradients_of_run(
    before,
    after,
    f"Does the gradient reach the first blocks? {net}",
    out / "inspect_gradients",
  )
  if before.has_skips:
    figures.residuals(
      series,
      f"Is F(x) a small correction of x? {net}",
      out / "inspect_residuals",
    )
  figures.responses(
    series,
    f"How strongly do layers respond? {net}",
    out / "inspect_responses",
  )
  figures.confusion(
    found,
    class_names,
    f"What is taken for what? {net}",
    out / "inspect_confusion",
  )
  figures.mistakes(
    found,
    class_names,
    f"The most confident mistakes: {net}",
    out / "inspect_mistakes",
  )
  return [
    "gradients",
    *(["residuals"] if before.has_skips else []),
    "responses",
    "confusion",
    "mistakes",
  ]


def study_untrained(
  names: Sequence[str], out: pathlib.Path, num_images: int, seed: int
) -> list[pathlib.Path]:
  """Measures networks as they are drawn, each beside its plain twin.

  Both with BatchNorm and without; the images are standard normal noise.

  Args:
    names: Of `list_models()`.
    out: A folder; made if it is not there.
    num_images: That go through a network together.
    seed: Of parameters and images.

  Raises:
    ValueError: For a network that has no skips.
  """
  panels, report = {}, {}
  for name in names:
    if create_model(name).shortcut == "none":
      raise ValueError(
        f"{name} has no skips: name the residual network, whose plain twin is "
        "drawn beside it"
      )
  for name in names:
    found = {
      f"{kind}, {norm}": probe_untrained(
        name,
        num_images,
        seed,
        **({"shortcut": "none"} if kind == "plain" else {}),
        norm="batch" if norm == "BatchNorm" else "none",
      )
      for kind in ("residual", "plain")
      for norm in ("BatchNorm", "no BatchNorm")
    }
    panels[name] = [
      (label, each, _style(label)) for label, each in found.items()
    ]
    report[name] = {
      label: dataclasses.asdict(each) for label, each in found.items()
    }
  out.mkdir(parents=True, exist_ok=True)
  figures.gradients(
    panels,
    "Gradients of untrained networks, from the stem to the last block",
    out / "inspect_gradients",
  )
  return written(
    out,
    {"seed": seed, "images": num_images, "step": 0, "nets": report},
    ["gradients"],
  )


def probe_untrained(
  name: str, num_images: int, seed: int, **fields: Any
) -> Probe:
  """Returns what goes through a network as it is drawn; noise for images."""
  model = create_model(name, **fields)
  size = 32 if model.stem == "cifar" else 96
  keys = jax.random.split(jax.random.key(seed), 3)
  images = jax.random.normal(keys[0], (num_images, size, size, 3))
  labels = jax.random.randint(keys[1], (num_images,), 0, model.num_classes)
  variables = initial_variables(model, keys[2], (size, size, 3))
  return probe(model, variables, images, labels)


def _probabilities(trained: Trained) -> Callable[..., jax.Array]:
  """Returns a function from uint8 images to probabilities."""
  run = trained.run

  @jax.jit
  def probabilities(variables, pixels):
    logits = run.model.apply(variables, run.normalize(pixels), train=False)
    return jax.nn.softmax(cast(jax.Array, logits))

  return functools.partial(probabilities, trained.after.evaluated)


def _style(label: str) -> dict[str, Any]:
  return {
    "color": figures.PLAIN if label.startswith("plain") else figures.SKIP,
    "linestyle": "--" if "no BatchNorm" in label else "-",
  }


def _as_json(found: Mistakes, names: Sequence[str]) -> dict[str, Any]:
  return {
    "confusion": found.confusion.tolist(),
    "accuracy_by_class": {
      name: None if np.isnan(share) else float(share)
      for name, share in zip(names, found.accuracy_by_class, strict=True)
    },
    "most_confident": [
      {
        "index": each.index,
        "class": names[each.label],
        "predicted": names[each.predicted],
        "probability": each.probability,
      }
      for each in found.most_confident
    ],
  }


def written(
  folder: pathlib.Path, report: dict, pictures: Sequence[str]
) -> list[pathlib.Path]:
  """Writes inspect.json and returns it with the pictures."""
  write_json(folder / "inspect.json", report)
  return [
    folder / "inspect.json",
    *(
      folder / f"inspect_{name}{ending}"
      for name in pictures
      for ending in (".png", ".svg")
    ),
  ]
