"""The compiled step: what it computes, donates, sends and leaves out."""

import collections
import contextlib
import functools
import math
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_resnet import sharding
from flax_resnet.models import BasicBlock, ResNet
from flax_resnet.training import metrics, RunError, setup, steps
from flax_resnet.training.state import create_state, NonFinite, TrainState
from tests import recipes, runs
from tests.drawing import normal
from tests.spoiling import spoil


@pytest.fixture
def config(data_dir):
  return recipes.tiniest(data_dir)


def relative_difference(a, b):
  a, b = (
    np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    for tree in (a, b)
  )
  return np.linalg.norm(a - b) / np.linalg.norm(a)


def variables_after_20_steps(config, values, devices=1):
  """Of a run of 660 steps, the rate of which still warms up."""
  every_20 = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 20)
  run = runs.make_run(config, {"num_steps": 660, **every_20, **values}, devices)
  return jax.device_get(runs.after_steps(run, 20).variables)


@pytest.mark.parametrize(
  ("group", "dtype", "cases"),
  [
    (8, "float64", [(8, 20)]),
    (None, "float32", [(8, 1)]),
    *(
      pytest.param(group, "float64", [(2, 1), (4, 20)], marks=pytest.mark.deep)
      for group in (None, 32)
    ),
  ],
)
def test_the_number_of_devices_changes_nothing(config, group, dtype, cases):
  """By one step a call or 20, with drawn blocks; cases are (devices, steps).

  In float32 sums are rounded in another order, as ReLU's kink makes visible.
  That grows with the width of the net; float64 shows that the computation is
  the same.
  """
  values = {
    "model.norm_group_size": group,
    "model.stochastic_depth": 0.5,
    "model.dtype": dtype,
    "model.param_dtype": dtype,
  }
  with jax.enable_x64(dtype == "float64"):
    one = variables_after_20_steps(config, values)
    assert {x.dtype for x in jax.tree.leaves(one)} == {np.dtype(dtype)}
    for devices, steps_per_call in cases:
      by_call = {**values, "steps_per_call": steps_per_call}
      other = variables_after_20_steps(config, by_call, devices)
      limit = 1e-9 if dtype == "float64" else 1e-4
      assert relative_difference(one, other) <= limit


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_the_state_is_updated_in_place(config, steps_per_call):
  """No second copy of it, neither after one step nor within several."""
  run = runs.make_run(config, {"steps_per_call": steps_per_call})
  state, (batch, _) = runs.first_state(run), next(run.train_inputs(0))
  compiled = run.train_step.lower(state, batch).compile()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert compiled.memory_analysis().alias_size_in_bytes >= size
  compiled(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_groups_within_a_device_need_only_the_gradients_reduced(config):
  """64 examples on 8 devices: groups of 8, and pairs, lie on one of them."""
  mixing = {"augment.mixup": 0.5, "augment.cutmix": 1.0}
  run = runs.make_run(config, {**mixing, "model.norm_group_size": 8}, devices=8)
  batch = next(sharding.prefetch(run.train_batches(0), run.mesh))
  compiled = run.train_step.lower(runs.first_state(run), batch).compile()
  found = collections.Counter(
    re.findall(
      r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
      r"(?:-start)?\(",
      compiled.as_text(),
    )
  )
  assert set(found) == {"all-reduce"}
  # The whole batch as one group would add two and more for each BatchNorm. On
  # CPU the gradient of a kernel is a call, which sums it over the devices.
  arrays = jax.tree.leaves(runs.first_state(run).params)
  kernels = sum(array.ndim == 4 for array in arrays)
  assert found["all-reduce"] <= 2 + kernels


class Noise(ResNet):
  """A network whose logits are drawn, as stochastic depth draws."""

  def setup(self):
    self.classifier = nn.Dense(self.num_classes, name="head")

  def __call__(self, images, *, train):
    key = self.make_rng("dropout")
    noise = jax.random.uniform(key, (len(images), self.num_classes))
    return noise + self.classifier(images.mean((1, 2)))


NOISE = Noise(
  stage_sizes=(1,), stage_features=(4,), block=BasicBlock, num_classes=5
)


def sums_of_steps(mesh, augment, loss, seed=0, count=3):
  """Returns the metrics of each of the first steps, all of one batch."""
  optimizer = optax.sgd(0.0)
  step = steps.TrainStep(
    model=NOISE,
    optimizer=optimizer,
    augment=augment,
    loss=loss,
    mesh=mesh,
    seed=seed,
  ).jit()
  state = create_state(NOISE, optimizer, (8, 8, 3), seed=0)
  bias = 10 * jax.nn.one_hot(2, 5)  # It says 2, whatever is drawn.
  head = {**state.params["head"], "bias": bias}
  state = state.replace(params={"head": head})
  batch = {
    "image": normal(0, (16, 8, 8, 3)),
    "label": jnp.arange(16) % 5,
    "mask": jnp.ones(16, bool),
  }
  found = []
  for _ in range(count):
    state = step(state.replace(sums=metrics.zeros()), batch)
    found.append(jax.device_get(state.sums))
  return found


def draw_targets(key, images, labels, step):
  return images, jax.random.uniform(key, labels.shape)


@pytest.mark.parametrize(
  "loss", [lambda logits, drawn: drawn, lambda drawn, targets: drawn[:, 0]]
)
def test_what_is_drawn_is_a_function_of_seed_and_step(mesh, loss):
  """By the augmentation, and by the network."""
  once, again, other = (
    [sums["loss"] for sums in sums_of_steps(mesh, draw_targets, loss, seed)]
    for seed in (0, 0, 1)
  )
  assert once == again
  assert len({*map(float, once), *map(float, other)}) == 6


def test_the_loss_is_of_the_targets_and_top1_of_the_labels(mesh):
  targets = jax.nn.one_hot(jnp.full(16, 4), 5)
  (sums,) = sums_of_steps(
    mesh,
    augment=lambda key, images, labels, step: (images, targets),
    loss=lambda logits, targets: 100 * targets[:, 4] + 0 * logits[:, 0],
    count=1,
  )
  assert sums["loss"] == pytest.approx(1600)
  assert sums["top1"] == 3  # Labels 2, of 0 to 4 in turn.


def state_with(params, nonfinite=0):
  return TrainState(
    step=jnp.int32(7),
    params=params,
    batch_stats={"mean": params},
    opt_state=(params,),
    average={},
    sums=metrics.zeros() | {"count": jnp.int32(4)},
    nonfinite=NonFinite.none().replace(count=jnp.int32(nonfinite)),
  )


def test_a_step_is_compiled_once_for_each_shape_of_batch(mesh):
  """And is given nothing from the host unasked."""
  paused = []

  @contextlib.contextmanager
  def pause(state):
    paused.append(state)
    yield

  add = lambda state, batch: state.replace(step=state.step + batch["x"].sum())
  step = steps.CompiledByShape(jax.jit(add), pause)
  few, many = np.ones(2, np.int32), np.ones(4, np.int32)
  state = sharding.replicate(state_with(np.ones(3)), mesh)
  for x in (few, few, many, many):
    state = step(state, sharding.shard_batch({"x": x}, mesh))
  assert state.step == 7 + 12
  assert len(paused) == 2
  with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
    step(state, {"x": many})


def after_a_step(loss=1.0, grad=1.0, mean=2.0, nonfinite=0, limit=0):
  """Returns the state after a step from 1 to 2, whose sums go from 4 to 8."""
  after = state_with(jnp.full(3, 2.0)).replace(
    step=jnp.int32(8),
    batch_stats={"mean": jnp.full(3, mean)},
    sums=metrics.zeros() | {"count": jnp.int32(8)},
  )
  grads = {"w": jnp.array([1.0, grad]), "b": jnp.ones(())}
  sums = metrics.zeros() | {
    "loss": jnp.float32(4 * loss),
    "count": jnp.int32(4),
  }
  before = state_with(jnp.full(3, 1.0), nonfinite)
  return steps.finite_or_before(before, after, grads, sums, limit)


def summary(state):
  """Returns step, parameter, statistics, optimizer, examples, nonfinite."""
  return (
    int(state.step),
    float(state.params[0]),
    float(state.batch_stats["mean"][0]),
    float(state.opt_state[0][0]),
    int(state.sums["count"]),
    int(state.nonfinite.count),
  )


def test_a_finite_step_is_taken():
  assert summary(after_a_step()) == (8, 2, 2, 2, 8, 0)
  assert summary(after_a_step(limit=3, nonfinite=3)) == (8, 2, 2, 2, 8, 3)
  assert summary(after_a_step(limit=10**12, nonfinite=3)) == (8, 2, 2, 2, 8, 3)


@pytest.mark.parametrize(
  "broken",
  [
    {"loss": math.nan},
    {"loss": math.inf},
    {"grad": math.nan},
    {"grad": -math.inf},
    {"grad": 1e30},  # Its square is not finite: the norm of the gradient.
    {"mean": math.inf},
  ],
)
def test_a_step_that_is_not_finite_changes_nothing(broken):
  assert summary(after_a_step(**broken)) == (7, 1, 1, 1, 4, 1)
  # Where it may be skipped, it counts as a step.
  assert summary(after_a_step(**broken, limit=1)) == (8, 1, 1, 1, 4, 1)
  one_more = after_a_step(**broken, limit=1, nonfinite=1)
  assert summary(one_more) == (7, 1, 1, 1, 4, 2)


def test_no_step_is_taken_after_the_one_that_ends_the_run():
  assert summary(after_a_step(nonfinite=1)) == (7, 1, 1, 1, 4, 1)
  broken = after_a_step(nonfinite=1, loss=math.nan)
  assert summary(broken) == (7, 1, 1, 1, 4, 1)


def test_the_step_that_ends_a_run_is_described():
  state = after_a_step(loss=0.5, grad=math.nan, nonfinite=2, limit=2)
  rate = lambda step: jnp.float32(step / 10)
  with pytest.raises(RunError) as error:
    steps.check_finite(state.nonfinite, 2, rate)
  assert str(error.value).startswith(
    "step 8 is not finite, after 2 that were skipped: loss 0.5, length of the "
    "gradient nan, learning rate 0.5; "
  )
  assert "\n" not in str(error.value)
  assert steps.check_finite(state.nonfinite, 3, rate) == 3


def with_steps_left_out(run, bad):
  """Returns the state at the end, where the host leaves the bad steps out."""
  state = runs.first_state(run)
  for batch in sharding.prefetch(run.train_batches(0), run.mesh):
    if (step := int(state.step)) == run.num_steps:
      return jax.device_get(state)
    if step + 1 in bad:
      state = state.replace(step=state.step + 1)
    else:
      state = run.train_step(state, batch)
  raise AssertionError


TOGETHER = {"steps_per_call": 5, "accumulate": 2, "ema_decay": 0.5}


@pytest.mark.parametrize(
  ("devices", "options"),
  [
    (1, {}),
    (4, TOGETHER | {"ema_every": 3}),
    *(
      pytest.param(devices, options, marks=pytest.mark.deep)
      for devices, options in (
        (1, {"freeze_trunk": True, "init_from": "read by nobody here"}),
        (8, {}),
      )
    ),
  ],
)
def test_a_skipped_step_is_a_step_left_out(
  config, monkeypatch, devices, options
):
  """Bit for bit, whatever a step is made of."""
  bad = (1, 6, 7, 12)
  values = {
    "num_steps": 12,
    "model.norm_group_size": 8,
    "skip_nonfinite": len(bad),
    **options,
  }
  # Before a frozen trunk nothing has a gradient; that of the head overflows.
  pixel = 1e30 if "freeze_trunk" in options else math.nan
  spoil(monkeypatch, config, *bad, pixel=pixel)
  run = runs.make_run(config, values, devices)
  found = jax.device_get(runs.after_steps(run, 12))
  nonfinite = found.nonfinite
  assert (found.step, nonfinite.count, nonfinite.step) == (12, 4, 12)
  assert not np.isfinite(nonfinite.norm)

  run = runs.make_run(config, {**values, "steps_per_call": 1}, devices)
  wanted = with_steps_left_out(run, bad)
  runs.assert_same_bits(
    found.replace(nonfinite=None), wanted.replace(nonfinite=None)
  )
  jax.tree.map(lambda x: np.testing.assert_(np.isfinite(x).all()), wanted)


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is(
  config, monkeypatch
):
  make = setup.make_loss

  @functools.wraps(make)
  def make_loss(**section):
    loss = make(**section)
    # Zero, with a slope that is not finite.
    root = lambda logits: jnp.sqrt(jnp.abs(0 * logits).sum(-1))
    return lambda logits, target: loss(logits, target) + root(logits)

  monkeypatch.setattr(setup, "make_loss", make_loss)
  state = runs.after_steps(runs.make_run(config, {"skip_nonfinite": 1}), 1)
  assert (int(state.step), int(state.nonfinite.count)) == (1, 1)
  assert np.isfinite(state.nonfinite.loss)
  assert not np.isfinite(state.nonfinite.norm)
