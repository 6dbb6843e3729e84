"""The variables of a network: drawn, stacked, folded, with another head."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models.variables import (
  image_channels,
  initial_variables,
  stack,
  unstack,
  with_new_head,
)
from tests.drawing import normal, variable_shapes, variables_of
from tests.recipes import ROOT

SMALL = {"stage_sizes": (1,), "stage_features": (4,), "num_classes": 3}
assert_same = functools.partial(jax.tree.map, np.testing.assert_array_equal)


START = """
import jax
import numpy as np
import flax_resnet as fr
from flax_resnet.models.variables import initial_variables

fields = {"stage_sizes": (1,), "stage_features": (4,)}
model = fr.create_model("cifar_resnet20", zero_init_residual=True, **fields)
key = jax.random.key(3)
start = initial_variables(model, key, (2, 2, 1))
images = np.zeros((1, 2, 2, 1), np.float32)
wanted = model.init(key, images, train=False)
jax.tree.map(np.testing.assert_array_equal, start, wanted)
"""


def test_the_start_is_that_of_init_to_the_bit():
  """Where the compiler optimizes, as it does not for the other tests."""
  command = [sys.executable, "-c", START]
  subprocess.run(
    command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, check=True
  )


def test_the_blocks_of_a_loop_start_differently():
  model = fr.create_model(
    "cifar_resnet20", **SMALL | {"stage_sizes": (3,)}, scan=True
  )
  start = initial_variables(model, jax.random.key(0), (2, 2, 1))["params"]
  first, second = start["stage1_blocks"]["conv1"]["kernel"]
  assert np.abs(first - second).max() > 0.1


def test_blocks_are_stacked_in_the_order_of_their_numbers():
  blocks = {f"stage2_block{n}": {"bias": np.full(3, n)} for n in range(1, 13)}
  variables = {"params": {"head": np.ones(2)} | blocks}
  stacked = stack(variables)
  bias = stacked["params"]["stage2_blocks"]["bias"]
  np.testing.assert_array_equal(bias[:, 0], range(2, 13))
  assert stacked["params"].keys() == {"head", "stage2_block1", "stage2_blocks"}
  assert_same(unstack(stacked), variables)


NETS = {
  "grouped bottleneck": ("resnext50_32x4d", {"stage_features": (16,)}),
  "deep stem, pooled shortcut, squeezing, biases": (
    "resnetrs50",
    {"stage_sizes": (1, 1), "stage_features": (4, 8), "use_bias": True},
  ),
  "option A": (
    "cifar_resnet20",
    {"zero_init_residual": True, "num_classes": 0},
  ),
  "split attention, grouped": (
    "resnest50d_1s4x24d",
    {"stage_sizes": (1, 1), "stage_features": (16, 16)},
  ),
  "3x3 shortcut, blur": (
    "senet154",
    {
      "stage_sizes": (1, 1),
      "stage_features": (32, 32),
      "downsampling": "blur",
    },
  ),
  "bare convolution": ("resnet18", {"shortcut": "conv", "use_bias": True}),
}


@pytest.mark.parametrize(("name", "fields"), NETS.values(), ids=NETS)
def test_a_folded_network_gives_the_same_outputs(name, fields):
  with jax.enable_x64(True):
    model = fr.create_model(name, **SMALL | {"dtype": "float64"} | fields)
    images = normal(2, (2, 9, 10, 3), np.float64)
    variables = variables_of(model, images.shape, np.float64)

    @jax.jit
    def run(variables):
      net, folded = fr.fold_batch_norm(model, variables)
      outputs = net.apply(folded, images, train=False)
      return outputs, model.apply(variables, images, train=False), folded

    found, wanted, folded = run(variables)
    assert np.std(wanted) > 0
    atol = 1e-12 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
    # The variables are all those of the folded network, and no others.
    net = model.clone(norm="none", zero_init_residual=False)
    shapes = variable_shapes(net, images.shape, np.float64)
    assert jax.tree.structure(folded) == jax.tree.structure(shapes)
    assert folded.keys() == {"params"}


def test_scanned_blocks_are_folded_too():
  model = fr.create_model("cifar_resnet20", **SMALL | {"stage_sizes": (3,)})
  variables = variables_of(model, (1, 8, 8, 3))
  before = jax.device_get(variables)
  given = jax.tree.map(np.copy, before)
  _, folded = fr.fold_batch_norm(model, given)
  scanned, stacked = fr.fold_batch_norm(
    model.clone(scan=True), stack(variables)
  )
  assert scanned.scan
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(close, stacked, stack(folded))
  assert_same(given, before)  # Arrays of NumPy are left as they are.


def test_a_new_head_is_put_on_the_same_trunk():
  model = fr.create_model("cifar_resnet20", **SMALL)
  variables = variables_of(model, (1, 8, 8, 1))
  params = variables["params"]
  renewed = with_new_head(
    variables, model.clone(num_classes=7), jax.random.key(0)
  )
  assert renewed["batch_stats"] is variables["batch_stats"]
  assert renewed["params"].keys() == params.keys()
  assert all(renewed["params"][k] is params[k] for k in params if k != "head")
  head = renewed["params"]["head"]
  assert head["kernel"].shape == (4, 7)
  assert np.std(head["kernel"]) == pytest.approx(0.01, rel=0.5)
  headless = with_new_head(
    variables, model.clone(num_classes=0), jax.random.key(0)
  )
  assert headless["params"].keys() == params.keys() - {"head"}


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_the_channels_of_the_images_are_those_of_the_stem(name):
  model = fr.create_model(name, **SMALL)
  params = variable_shapes(model, (1, 32, 32, 5))["params"]
  assert image_channels(params) == 5
