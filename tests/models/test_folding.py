"""BatchNorm in the convolutions: the same outputs, and no BatchNorm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models.variables import stack
from tests.drawing import normal, variables_of

SMALL = {"stage_sizes": (2, 2), "stage_features": (8, 16), "num_classes": 5}
NETS = {
  "basic": ("resnet18", {}),
  "bottleneck": ("resnet50", {}),
  "stride in the 1x1": ("resnet50_v1", {"output_stride": 4}),
  "grouped": ("resnext50_32x4d", {"stage_features": (64, 64)}),
  "deep stem, pooled shortcut": ("resnet50d", {}),
  "squeezing, convolution for a pool": ("resnetrs50", {}),
  "option A": ("cifar_resnet20", {}),
  "option C": ("resnet18", {"shortcut": "projection_all"}),
  "bare convolution": ("resnet18", {"shortcut": "conv"}),
  "biases": ("resnet18", {"use_bias": True, "zero_init_residual": True}),
  "features": ("resnet18", {"num_classes": 0}),
}


@pytest.mark.parametrize(("name", "fields"), NETS.values(), ids=NETS)
def test_the_outputs_are_equal(name, fields):
  with jax.enable_x64(True):
    model = fr.create_model(name, **{**SMALL, "dtype": jnp.float64, **fields})
    images = normal(2, (2, 33, 36, 3), np.float64)
    variables = variables_of(model, images.shape, np.float64)
    folded, folded_variables = fr.fold_batch_norm(model, variables)

    expected = jax.jit(functools.partial(model.apply, train=False))(
      variables, images
    )
    found = jax.jit(functools.partial(folded.apply, train=False))(
      folded_variables, images
    )
    assert jnp.std(expected) > 0
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-12 * float(jnp.abs(expected).max())
    )
    # The variables are all those of the folded network, and no others.
    wanted = jax.eval_shape(
      functools.partial(folded.init, train=False), jax.random.key(0), images
    )
  assert jax.tree.structure(wanted) == jax.tree.structure(folded_variables)
  assert set(wanted) == {"params"}


def test_scanned_blocks_are_folded_too():
  model = fr.create_model("cifar_resnet20", **{**SMALL, "stage_sizes": (3, 3)})
  images = normal(2, (2, 8, 8, 3))
  variables = variables_of(model, images.shape)
  _, single = fr.fold_batch_norm(model, variables)
  scanned, stacked = fr.fold_batch_norm(
    model.clone(scan=True), stack(variables)
  )
  assert scanned.scan
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    stacked,
    stack(single),
  )


def test_arrays_of_numpy_stay_as_they_are():
  model = fr.create_model("resnet18", **SMALL)
  images = jnp.ones((1, 32, 32, 3))
  variables = jax.device_get(variables_of(model, images.shape))
  before = jax.tree.map(np.copy, variables)
  fr.fold_batch_norm(model, variables)
  jax.tree.map(np.testing.assert_array_equal, variables, before)


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("wrn_40_4", {}, "pre-activation network comes before the convolutions"),
    ("resnet18", {"norm": "none"}, "has no BatchNorm to fold"),
  ],
)
def test_what_cannot_be_folded(name, fields, message):
  model = fr.create_model(name, **fields)
  with pytest.raises(ValueError, match=message):
    fr.fold_batch_norm(model, {"params": {}})


def test_a_network_without_batch_norm_has_no_last_scale():
  with pytest.raises(ValueError, match="zero_init_residual starts the last"):
    fr.create_model("resnet18", norm="none", zero_init_residual=True)
