"""Mixup, cutmix and random erasing in the step of a run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_resnet import sharding
from flax_resnet.models import create_model
from flax_resnet.training import InputError
from flax_resnet.training import losses
from flax_resnet.training import steps
from flax_resnet.training.setup import prepare
from flax_resnet.training.state import create_state
from tests.drawing import normal


@pytest.fixture
def mixed(config):
  """The tiny recipe, whose steps cut or mix, and erase."""
  config.augment.update(rotation=0.0, translation=0.0, scaling=0.0, shear=0.0)
  with config.augment.unlocked():
    config.augment.update(mixup=0.5, cutmix=1.0, random_erasing=0.3)
  config.optim.learning_rate = 1e-12  # So that the draws alone differ.
  return config


def losses_of(config, devices):
  """Returns the loss of each call in three steps."""
  run = prepare(config.to_dict(), sharding.make_mesh(jax.devices()[:devices]))
  state = run.initial_state()
  found = []
  for batch, _ in run.train_calls(0):
    state = run.train_step(state, batch)
    found.append(float(state.sums["loss"]))
    state = state.replace(sums=run.zero_sums())
    if state.step >= 3:
      break
  return found


@pytest.mark.slow
def test_a_mixed_run_is_the_same_by_one_call_on_eight_devices(mixed):
  mixed.log_every = mixed.eval_every = mixed.checkpoint_every = 3
  mixed.num_steps = 3
  with mixed.model.unlocked():
    mixed.model.dtype = mixed.model.param_dtype = "float64"
  with jax.enable_x64(True):
    one = losses_of(mixed, 1)
    mixed.steps_per_call = 3
    (together,) = losses_of(mixed, 8)
  assert len(set(one)) == 3
  assert together == pytest.approx(sum(one), rel=1e-6)


def test_each_step_draws_anew_from_the_seed(mixed, mesh):
  run = prepare(mixed.to_dict(), mesh)
  pixels = np.random.default_rng(5).integers(256, size=(64, 8, 8, 1))
  batch = {
    "image": jnp.asarray(pixels, jnp.uint8),
    "label": jnp.arange(64) % 10,
    "mask": jnp.ones(64, bool),
  }

  def losses_of_the_batch():
    state = run.initial_state()
    found = []
    for _ in range(3):
      state = run.train_step(state, batch)
      found.append(float(state.sums["loss"]))
      state = state.replace(sums=run.zero_sums())
    return found

  once = losses_of_the_batch()
  assert len(set(once)) == 3
  assert once == losses_of_the_batch()


def test_mixing_sends_nothing_between_devices(mixed):
  """64 examples on 8 devices: pairs lie on one of them."""
  mixed.model.norm_group_size = 8
  run = prepare(mixed.to_dict(), sharding.make_mesh())
  batch = next(sharding.prefetch(run.train_batches(0), run.mesh))
  text = run.train_step.lower(run.initial_state(), batch).compile().as_text()
  sent = re.findall(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\(",
    text,
  )
  assert set(sent) == {"all-reduce"}  # Of the gradients.
  assert len(sent) <= 3


def test_the_loss_is_of_the_targets_and_top1_of_the_labels(mesh):
  model = create_model("cifar_resnet8", num_classes=5, stage_features=(4, 4, 4))
  optimizer = optax.sgd(0.0)
  state = create_state(model, optimizer, (8, 8, 3), seed=0)
  images = normal(0, (16, 8, 8, 3))
  logits, _ = model.apply(
    state.variables, images, train=True, mutable=["batch_stats"]
  )
  best = logits.argmax(-1)
  # The network is right on a half of the labels, and on none of the targets.
  labels = jnp.where(jnp.arange(16) < 8, best, (best + 1) % 5)
  targets = jax.nn.one_hot((best + 2) % 5, 5)
  step = steps.make_train_step(
    model,
    optimizer,
    lambda key, images, labels: (images, targets),
    losses.make_loss(label_smoothing=0.0),
    seed=0,
    mesh=mesh,
  )
  batch = {"image": images, "label": labels, "mask": jnp.ones(16, bool)}
  sums = step(state, batch).sums
  assert sums["top1"] == 8
  wanted = -(targets * jax.nn.log_softmax(logits)).sum()
  np.testing.assert_allclose(sums["loss"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mixup": -0.1}, "config.augment: mixup is -0.1: use 0 or more"),
    ({"mixup": "a"}, "config.augment.mixup is 'a': use float"),
    ({"cutmix": -1.0}, "config.augment: cutmix is -1.0: use 0 or more"),
    ({"random_erasing": 2.0}, "random_erasing is 2.0: use 0 to 1"),
    (
      {"cutmax": 1.0},
      "config.augment.cutmax is unknown: did you mean 'cutmix'",
    ),
    (
      {"batch_size": 63},
      "batch_size is 63, and mixup and cutmix take examples in pairs: use an "
      "even one",
    ),
  ],
)
def test_a_wrong_number_ends_with_one_sentence(mixed, mesh, changes, message):
  whole = mixed if "batch_size" in changes else mixed.augment
  with whole.unlocked(), whole.ignore_type():
    whole.update(changes)
  with pytest.raises(InputError, match=message):
    prepare(mixed.to_dict(), mesh)


def test_an_odd_batch_that_is_not_mixed_is_fine(config, mesh):
  config.batch_size = 63
  assert prepare(config.to_dict(), mesh).recipe.batch_size == 63
