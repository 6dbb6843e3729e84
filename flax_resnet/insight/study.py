"""From a run, or untrained networks, to inspect.json and its pictures."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp

from flax_resnet import fonts, plots, sharding, storage
from flax_resnet.errors import InputError
from flax_resnet.insight.mistakes import find_mistakes, Mistakes
from flax_resnet.insight.probe import Probe, probe
from flax_resnet.models import create_model
from flax_resnet.models.variables import initial_variables, Variables
from flax_resnet.training.init_from import start_from_weights
from flax_resnet.training.setup import Run, set_up
from flax_resnet.weights import load_pretrained
from flax_resnet.weights.files import find_checkpoint

_STYLES: plots.Styles = {
  "before training": {"color": plots.BEFORE},
  "after training": {"color": plots.RESIDUAL},
  "whole": {"color": plots.RESIDUAL},
  "back through the skips alone": {"color": plots.ONLY_SKIPS},
}


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run with its variables before and after training.

  Attributes:
    run: the parts of the run, on one device.
    step: step of its newest sound checkpoint.
    before: variables before the first step.
    after: variables of that checkpoint; the average in a run with `ema_decay`.
  """

  run: Run
  step: int
  before: Variables
  after: Variables

  @classmethod
  def load(cls, workdir: pathlib.Path) -> "TrainedRun":
    """Returns the run in a workdir.

    Raises:
      InputError: if there is no run, or the weights that it started from are
        gone.
      WeightsError: if it has no checkpoint yet, or a damaged one.
    """
    config = storage.read_config(workdir)
    run = set_up(config, sharding.make_mesh(jax.local_devices()[:1]))
    if run.dataset.multi_label:
      raise InputError(
        f"{workdir} is a run on images of several labels, which inspect cannot "
        "show: evaluate --json has the average precision of each class"
      )
    checkpoint = find_checkpoint(workdir)
    after = load_pretrained(checkpoint).variables
    before, _ = start_from_weights(run, run.drawn_state())
    return cls(run, int(checkpoint.name), before.variables, after)

  @property
  def title(self) -> str:
    """The network, the data set and the step."""
    return f"{self.run.title}, step {self.step}"

  def probes(self, num_images: int) -> tuple[Probe, Probe]:
    """Returns what goes through the network before and after training.

    Args:
      num_images: number of training images, without augmentation, that go
        through the network together; all if the set has fewer.

    Raises:
      InputError: if BatchNorm cannot normalize so many in its groups.
    """
    train = self.run.dataset.train
    count = min(num_images, len(train))
    group = self.run.model.norm_group_size
    if group and count % group:
      raise InputError(
        f"{count} images are no multiple of {group}, the norm_group_size of "
        f"{self.run.title}: choose other --images"
      )
    batches = train.train_batches(batch_size=count, seed=self.run.recipe.seed)
    batch = next(batches)
    images = self.run.normalize(jnp.asarray(batch["image"]))
    labels = jnp.asarray(batch["label"])
    states = [self.before, self.after]
    before, after = probe(self.run.model, states, images, labels)
    return before, after

  def mistakes(self, keep: int = 20) -> Mistakes:
    """Returns what the trained network gets wrong on the evaluation split.

    Args:
      keep: number of examples that are kept, as in `find_mistakes`; default 20.
    """
    model, normalize = self.run.model, self.run.normalize

    @jax.jit
    def predict(variables, images):
      logits = model.apply(variables, normalize(images), train=False)
      return jax.nn.softmax(cast(jax.Array, logits))

    return find_mistakes(
      lambda images: predict(self.after, images),
      self.run.eval_batches(),
      model.num_classes,
      keep,
    )


def study_run(workdir: pathlib.Path, num_images: int) -> list[pathlib.Path]:
  """Measures a run before and after its training; writes into its workdir.

  Args:
    workdir: folder of the run.
    num_images: number of training images, as in `TrainedRun.probes`.

  Returns:
    The files that were written.

  Raises:
    InputError, WeightsError: as in `TrainedRun.load` and `TrainedRun.probes`.
  """
  trained = TrainedRun.load(workdir)
  before, after = trained.probes(num_images)
  mistakes = trained.mistakes()
  class_names = trained.run.dataset.class_names
  probes = {"before training": before, "after training": after}
  files = [
    *_draw_gradients(probes, trained.title, workdir),
    *draw_responses(probes, _STYLES, f" {trained.title}", workdir),
    *_draw_mistakes(mistakes, class_names, trained.title, workdir),
  ]
  report = {
    "net": trained.run.title,
    "step": trained.step,
    "images": before.images,
    "before": dataclasses.asdict(before),
    "after": dataclasses.asdict(after),
    "mistakes": _mistakes_report(mistakes, class_names),
  }
  storage.write_json(workdir / "inspect.json", report)
  return [workdir / "inspect.json", *files]


def _draw_gradients(
  probes: Mapping[str, Probe], title: str, out: pathlib.Path
) -> list[pathlib.Path]:
  panels = {}
  for moment, found in probes.items():
    panels[moment] = {"whole": found.at_blocks("gradient")}
    if found.has_skips:
      by_skips = found.at_blocks("gradient_by_skips")
      panels[moment]["back through the skips alone"] = by_skips
  return plots.gradient_norms(
    panels,
    _STYLES,
    f"Does the gradient reach the first blocks? {title}",
    out / "inspect_gradients",
    from_stem=False,
  )


def draw_responses(
  probes: Mapping[str, Probe],
  styles: plots.Styles,
  title: str,
  out: pathlib.Path,
) -> list[pathlib.Path]:
  """Draws responses of layers, and F(x) beside x where there are skips.

  Args:
    probes: probes by label.
    styles: styles by label.
    title: rest of the titles, behind their question.
    out: folder of the pictures.

  Returns:
    The files of the pictures.
  """
  files = plots.layer_responses(
    {label: list(found.responses.values()) for label, found in probes.items()},
    styles,
    f"How strongly do layers respond?{title}",
    out / "inspect_responses",
  )
  residual = {label: each for label, each in probes.items() if each.has_skips}
  if residual:
    files += plots.residuals(
      {label: found.at_blocks("residual") for label, found in residual.items()},
      {label: found.at_blocks("cosine") for label, found in residual.items()},
      styles,
      f"Is F(x) a small correction of x?{title}",
      out / "inspect_residuals",
    )
  return files


def _draw_mistakes(
  mistakes: Mistakes, class_names: Sequence[str], title: str, out: pathlib.Path
) -> list[pathlib.Path]:
  class_names = fonts.drawable_names(class_names)
  captions = []
  for mistake in mistakes.most_confident:
    probability = mistake.probability
    share = f"{probability:.0%}" if math.isfinite(probability) else "not finite"
    captions.append(
      f"{class_names[mistake.label]} taken for\n"
      f"{class_names[mistake.predicted]} ({share})"
    )
  return [
    *plots.confusion_matrix(
      mistakes.confusion,
      mistakes.accuracy_by_class,
      class_names,
      f"What is taken for what? {title}",
      out / "inspect_confusion",
    ),
    *plots.image_grid(
      [mistake.image for mistake in mistakes.most_confident],
      captions,
      f"The most confident mistakes: {title}",
      out / "inspect_mistakes",
    ),
  ]


def _mistakes_report(
  mistakes: Mistakes, class_names: Sequence[str]
) -> dict[str, Any]:
  return {
    "confusion": mistakes.confusion.tolist(),
    "accuracy_by_class": dict(
      zip(class_names, mistakes.accuracy_by_class.tolist(), strict=True)
    ),
    "most_confident": [
      {
        "index": each.index,
        "class": class_names[each.label],
        "predicted": class_names[each.predicted],
        "probability": each.probability,
      }
      for each in mistakes.most_confident
    ],
  }


def study_untrained(
  names: Sequence[str], out: pathlib.Path, num_images: int, seed: int
) -> list[pathlib.Path]:
  """Measures networks as they are drawn, each beside its plain twin.

  Both with BatchNorm and without; the images are standard normal noise.

  Args:
    names: networks, see `list_models()`.
    out: folder to write to, which is made if it is not there.
    num_images: number of images that go through a network together.
    seed: seed of parameters and images.

  Returns:
    The files that were written.

  Raises:
    ValueError: for a network that has no skips.
  """
  for name in names:
    if create_model(name).shortcut == "none":
      raise ValueError(
        f"{name} has no skips: name the residual network, whose plain twin is "
        "drawn beside it"
      )
  out.mkdir(parents=True, exist_ok=True)  # Before the work, if it cannot be.
  panels, nets = {}, {}
  for name in names:
    probes = {
      f"{kind}, {norm}": _probe_untrained(
        name,
        num_images,
        seed,
        norm="batch" if norm == "BatchNorm" else "none",
        **({"shortcut": "none"} if kind == "plain" else {}),
      )
      for kind in ("residual", "plain")
      for norm in ("BatchNorm", "no BatchNorm")
    }
    panels[name] = {label: each.gradients() for label, each in probes.items()}
    nets[name] = {k: dataclasses.asdict(each) for k, each in probes.items()}
  files = plots.gradient_norms(
    panels,
    {
      "residual, BatchNorm": {"color": plots.RESIDUAL},
      "residual, no BatchNorm": {"color": plots.RESIDUAL, "linestyle": "--"},
      "plain, BatchNorm": {"color": plots.PLAIN},
      "plain, no BatchNorm": {"color": plots.PLAIN, "linestyle": "--"},
    },
    "Gradients of untrained networks, from the stem to the last block",
    out / "inspect_gradients",
    from_stem=True,
  )
  report = {"seed": seed, "images": num_images, "step": 0, "nets": nets}
  storage.write_json(out / "inspect.json", report)
  return [out / "inspect.json", *files]


def _probe_untrained(
  name: str, num_images: int, seed: int, **fields: Any
) -> Probe:
  model = create_model(name, **fields)
  size = 32 if model.stem == "cifar" else 96
  keys = jax.random.split(jax.random.key(seed), 3)
  images = jax.random.normal(keys[0], (num_images, size, size, 3))
  labels = jax.random.randint(keys[1], (num_images,), 0, model.num_classes)
  variables = initial_variables(model, keys[2], (size, size, 3))
  return probe(model, [variables], images, labels)[0]
