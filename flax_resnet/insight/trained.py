"""A run with its parameters before and after training."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from flax_resnet import sharding
from flax_resnet.insight.probe import Probe, probe_each
from flax_resnet.training import digests
from flax_resnet.training import workdir as workdirs
from flax_resnet.training.checkpoint import Checkpoints
from flax_resnet.training.run import prepare, Run
from flax_resnet.training.schema import InputError
from flax_resnet.training.state import TrainState
from flax_resnet.training.warm_start import warm_start


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run with its parameters before and after training.

  Attributes:
    run: The run.
    before: Its state at step 0.
    after: Its state at the last checkpoint.
  """

  run: Run
  before: TrainState
  after: TrainState

  @classmethod
  def load(cls, workdir: pathlib.Path) -> "Trained":
    """Returns the run of a workdir, on one device.

    Raises:
      InputError: When there is no such run, when nothing is saved yet, or when
        the weights that it started from are gone.
    """
    config = workdirs.read_config(workdir)
    run = prepare(config, sharding.make_mesh(jax.local_devices()[:1]))
    drawn = run.initial_state()
    after = _latest(workdir, run, drawn)
    before, _ = warm_start(run, drawn)
    return cls(run, before, after)

  @property
  def title(self) -> str:
    """Network, data set and step."""
    return f"{self.run.title()}, step {int(self.after.step)}"

  def probes(self, num_images: int) -> tuple[Probe, Probe]:
    """Returns what goes through the network before and after training.

    Args:
      num_images: Of the training set, without augmentation, that go through
        the network together; fewer if the set has fewer.

    Raises:
      InputError: When BatchNorm cannot normalise so many in its groups.
    """
    count = min(num_images, len(self.run.dataset.train))
    group = self.run.model.norm_group_size
    if group and count % group:
      raise InputError(
        f"{count} images are no multiple of {group}, the norm_group_size of "
        f"{self.run.title()}: choose other --images"
      )
    batches = self.run.dataset.train.train_batches(
      batch_size=count, seed=self.run.recipe.seed
    )
    batch = next(batches)
    images = self.run.normalize(jnp.asarray(batch["image"]))
    labels = jnp.asarray(batch["label"])
    states = [self.before.variables, self.after.evaluated]
    before, after = probe_each(self.run.model, states, images, labels)
    return before, after


def _latest(workdir: pathlib.Path, run: Run, like: TrainState) -> TrainState:
  if not (workdir / "checkpoints").is_dir():
    raise InputError(f"the run in {workdir} has saved no checkpoint yet")
  checkpoints = Checkpoints(
    workdir / "checkpoints", run.recipe.keep_checkpoints
  )
  try:
    if (step := checkpoints.latest_step()) is None:
      raise InputError(f"the run in {workdir} has saved no checkpoint yet")
    folder = workdir / "checkpoints" / str(step)
    if what := digests.damage(folder):
      raise InputError(f"checkpoint {folder} is damaged: {what}: remove it")
    return checkpoints.restore(step, like)
  finally:
    checkpoints.close()
