"""From runs or untrained networks to inspect.json and its pictures."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet import sharding
from flax_resnet.insight import figures
from flax_resnet.insight.mistakes import find_mistakes, Mistakes
from flax_resnet.insight.probe import Probe, probe
from flax_resnet.models import create_model
from flax_resnet.models.start import initial_variables
from flax_resnet.training import workdir as workdirs
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.logbook import read
from flax_resnet.training.run import prepare, Run
from flax_resnet.training.schema import InputError
from flax_resnet.training.state import TrainState


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
  config = workdirs.read_config(workdir)
  run = prepare(config, sharding.make_mesh(jax.local_devices()[:1]))
  before = run.initial_state()
  after = _latest(workdir, run, before)
  images, labels = _training_images(run, num_images)
  found = {
    name: probe(run.model, state.variables, images, labels)
    for name, state in (("before", before), ("after", after))
  }
  mistakes = find_mistakes(
    _probabilities(run, after),
    run.eval_batches(),
    run.model.num_classes,
  )
  names = run.dataset.class_names
  net = f"{run.title()}, step {int(after.step)}"
  one, other = found["before"], found["after"]
  figures.gradients_of_run(
    one,
    other,
    f"Does the gradient reach the first blocks? {net}",
    workdir / "inspect_gradients",
  )
  pictures = ["gradients", "responses", "confusion", "mistakes"]
  if one.blocks[0].residual is not None:
    pictures.insert(1, "residuals")
    figures.residuals(
      one,
      other,
      f"Is F(x) a small correction of x? {net}",
      workdir / "inspect_residuals",
    )
  figures.responses(
    {"before training": one, "after training": other},
    f"How strongly do layers respond? {net}",
    workdir / "inspect_responses",
  )
  figures.confusion(
    mistakes,
    names,
    f"What is taken for what? {net}",
    workdir / "inspect_confusion",
  )
  figures.mistakes(
    mistakes,
    names,
    f"The most confident mistakes: {net}",
    workdir / "inspect_mistakes",
  )
  report = {
    "net": run.title(),
    "step": int(after.step),
    "images": len(labels),
    **{name: dataclasses.asdict(each) for name, each in found.items()},
    "mistakes": _as_json(mistakes, names),
  }
  return _written(workdir, report, pictures)


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
  return _written(
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


def compare_runs(
  runs: Sequence[pathlib.Path], out: pathlib.Path
) -> list[pathlib.Path]:
  """Puts the errors of several runs beside each other.

  Args:
    runs: Their workdirs.
    out: A folder; made if it is not there.

  Raises:
    InputError: When one is not a run, or has not been evaluated yet.
  """
  rows, report = {}, {}
  alike = len({workdir.name for workdir in runs}) < len(runs)
  for workdir in runs:
    config = workdirs.read_config(workdir)
    name = str(workdir) if alike else workdir.name
    rows[name] = read(workdir / "metrics.jsonl")
    evaluated = [row for row in rows[name] if "val/top1" in row]
    if not evaluated:
      raise InputError(f"the run in {workdir} has not been evaluated yet")
    fields = dict(config["model"])
    model = create_model(fields.pop("name"), **fields)
    size, channels = config["data"]["image_size"], config["augment"]["mean"]
    images = jax.ShapeDtypeStruct((1, size, size, len(channels)), model.dtype)
    shapes = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), images
    )
    report[name] = {
      "model": config["model"]["name"],
      "shortcut": model.shortcut,
      "parameters": sum(x.size for x in jax.tree.leaves(shapes["params"])),
      "step": evaluated[-1]["step"],
      "train/loss": rows[name][-1].get("train/loss"),
      "val/top1": evaluated[-1]["val/top1"],
      "val/count": evaluated[-1]["val/count"],
    }
  out.mkdir(parents=True, exist_ok=True)
  figures.curves(
    rows, "Errors by step: " + ", ".join(rows), out / "inspect_curves"
  )
  return _written(out, {"runs": report}, ["curves"])


def _latest(workdir: pathlib.Path, run: Run, like: TrainState) -> TrainState:
  if not (workdir / "checkpoints").is_dir():
    raise InputError(f"the run in {workdir} has saved no checkpoint yet")
  checkpoints = Checkpoints(
    workdir / "checkpoints", run.recipe.keep_checkpoints
  )
  try:
    if (step := checkpoints.latest_step()) is None:
      raise InputError(f"the run in {workdir} has saved no checkpoint yet")
    return checkpoints.restore(step, like)
  finally:
    checkpoints.close()


def _training_images(run: Run, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns training images as evaluation would see them, and their labels."""
  batches = run.dataset.train.train_batches(
    batch_size=min(count, len(run.dataset.train)), seed=run.recipe.seed
  )
  batch = next(batches)
  return run.normalize(jnp.asarray(batch["image"])), jnp.asarray(batch["label"])


def _probabilities(run: Run, state: TrainState) -> Callable[..., jax.Array]:
  """Returns a function from uint8 images to probabilities."""

  @jax.jit
  def probabilities(variables, pixels):
    logits = run.model.apply(variables, run.normalize(pixels), train=False)
    return jax.nn.softmax(cast(jax.Array, logits))

  return functools.partial(probabilities, state.variables)


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


def _written(
  folder: pathlib.Path, report: dict, pictures: Sequence[str]
) -> list[pathlib.Path]:
  """Writes inspect.json and returns it with the pictures."""
  workdirs.write_json(folder / "inspect.json", report)
  return [
    folder / "inspect.json",
    *(
      folder / f"inspect_{name}{ending}"
      for name in pictures
      for ending in (".png", ".svg")
    ),
  ]
