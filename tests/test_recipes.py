"""Every recipe of this repository makes a run, trains, and is a record."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from flax_resnet import sharding
from flax_resnet.errors import InputError
from flax_resnet.recipes import find_recipe, list_recipes
from flax_resnet.training import load_recipe, train
from flax_resnet.training.log import read_rows
from flax_resnet.training.schedules import make_schedule
from flax_resnet.training.setup import set_up
from tests.recipes import changed, on_synthetic_images, RECIPES, ROOT

# The others derive from these, and add no key that these do not try.
TRAINED = ("cifar10_fast", "imagenet_progressive", "imagenet_rsb_a2")


def test_a_recipe_has_a_name_or_a_path(tmp_path, monkeypatch):
  """What is there as a path is taken as one."""
  monkeypatch.chdir(tmp_path)
  assert [path.stem for path in RECIPES] == list_recipes()
  assert find_recipe("digits").samefile(ROOT / "configs" / "digits.py")
  assert load_recipe("digits") == load_recipe(ROOT / "configs" / "digits.py")
  (tmp_path / "digits").mkdir()
  assert find_recipe("digits").suffix == ".py"  # A folder of data.
  with pytest.raises(InputError, match="digits is a folder without config"):
    find_recipe("./digits/")
  (tmp_path / "digits" / "config.json").write_text('{"seed": 5}')
  assert load_recipe("digits", ["seed=6"]).to_dict() == {"seed": 6}


def test_changes_are_a_list():
  with pytest.raises(InputError, match="overrides is 'seed=1': give a list"):
    inspect.unwrap(load_recipe)("digits", "seed=1")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_a_run(path):
  """Under eval_shape: every option meets the network, nothing is computed.

  The network has a block a stage.
  """
  mesh = sharding.make_mesh()
  config = on_synthetic_images(path)
  stages = set_up(config.to_dict(), mesh).model.stage_sizes
  one_each = {"model.stage_sizes": (1,) * len(stages)}
  run = set_up(changed(config, one_each).to_dict(), mesh)
  batch, _ = next(run.train_inputs(0))
  state = jax.eval_shape(run.drawn_state)
  new = jax.eval_shape(run.train_step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  batch = next(sharding.prefetch(run.eval_batches(), mesh, ahead=0))
  sums = jax.eval_shape(
    run.eval_step, state.eval_variables, run.zero_sums(), batch
  )
  assert sums.keys() == {"loss", "top1", "top5", "count"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_warms_up_downwards(path):
  """At its own batch size, a fourth and a 32nd of it, and at another peak."""
  own = load_recipe(path).batch_size
  changes = [[f"batch_size={own // n}"] for n in (1, 4, 32)]
  for overrides in [*changes, ["optim.learning_rate=0.001"]]:
    optim = load_recipe(path, overrides).optim.to_dict()
    known = inspect.signature(make_schedule).parameters
    section = {key: optim[key] for key in known & optim.keys()}
    rate = jax.vmap(make_schedule(1_000, **section))(jnp.arange(1_001))
    peak = section["learning_rate"]
    assert rate.max() <= peak * (1 + 1e-6), overrides
    rise = round(section.get("warmup", 0) * 1_000)
    assert (jnp.diff(rate[: rise + 1]) >= 0).all(), overrides


@pytest.mark.parametrize(
  ("name", "overrides", "peak"),
  [
    # Goyal et al. 2017, section 2.1.
    ("imagenet_resnet50", (), 0.4),
    ("imagenet_resnet50", ("batch_size=8192",), 3.2),
    ("imagenet_resnet50", ("batch_size=8192", "optim.learning_rate=2"), 2),
    ("imagenet_flax_example", ("batch_size=2048",), 0.8),
    ("imagenet_torchvision_v2", ("batch_size=512",), 0.25),
    ("imagenet_resnetrs50", (), 1.6),
    ("imagenet_nvidia", (), 2.048),
    ("imagenet_progressive", ("batch_size=512",), 1.7 / 8),
    ("folder", ("batch_size=256",), 0.1),
    # Not scaled: LAMB's and LARS's rates, and nets for small machines.
    ("imagenet_rsb_a2", ("batch_size=1008",), 5e-3),
    ("cifar10_resnet20", ("batch_size=64",), 0.1),
  ],
)
def test_the_peak_is_that_of_the_batch_size(name, overrides, peak):
  config = load_recipe(ROOT / "configs" / f"{name}.py", overrides)
  assert config.optim.learning_rate == pytest.approx(peak)


@pytest.mark.deep
@pytest.mark.parametrize("name", TRAINED)
def test_recipes_train(name, tmp_path, mesh):
  """Two steps of a net of one thin block, and its evaluation."""
  config = on_synthetic_images(ROOT / "configs" / f"{name}.py")
  values = {
    "num_epochs": None,
    "num_steps": 2,
    "log_every": 1,
    "eval_every": 2,
    "eval_batch_size": 128,
    "steps_per_call": min(2, config.get("steps_per_call", 1)),
    "model.stage_sizes": (1,),
    "model.stage_features": (8,),
  }
  if "early_image_sizes" in config.data:
    values["data.early_image_sizes"] = ((0.5, 24),)
  summary, _ = train(changed(config, values), tmp_path, mesh)
  assert summary["finished"]
  first, second = read_rows(tmp_path / "metrics.jsonl")
  assert 0 < first["train/loss"] < 100
  assert first["train/loss"] != second["train/loss"]
  assert second["val/count"] == 256


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_record(path):
  """Its docstring says the command and what was measured."""
  text = path.read_text()
  assert f"python train.py --config configs/{path.name}" in text
  assert "Measured:" in text
