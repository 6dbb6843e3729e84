"""Names behind those that training code adds."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flax_resnet as fr
from flax_resnet.weights import load_pretrained, WeightsError, wrappers
from tests.weights.conftest import CASE

OTHER = np.zeros(2, np.float32)


def behind(prefix, tensors):
  return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def inside(part, tensors):
  return {
    name.replace("layer1.0.", f"layer1.0.{part}."): tensor
    for name, tensor in tensors.items()
  }


def headless(tensors):
  return {k: v for k, v in tensors.items() if not k.startswith("linear.")}


# What training code makes of the names of a network; what is said of it; and
# whether the head is the network's.
WRAPPED = {
  "data-parallel": (
    lambda t: behind("module.", t),
    "stripped from the names: module.",
    True,
  ),
  "compiled": (
    lambda t: behind("_orig_mod.", t),
    "stripped from the names: _orig_mod.",
    True,
  ),
  "averaged": (
    lambda t: behind("module.", t) | {"n_averaged": OTHER},
    "stripped from the names: module.; left out: n_averaged",
    True,
  ),
  "compiled in data-parallel in Lightning": (
    lambda t: behind("model._orig_mod.module.", t) | {"loss.weight": OTHER},
    "stripped from the names: _orig_mod., model.module.; left out: loss.weight",
    True,
  ),
  "an attribute of any name": (
    lambda t: behind("my_net.", t),
    "stripped from the names: my_net.",
    True,
  ),
  "compiled and checkpointed blocks": (
    lambda t: inside("_checkpoint_wrapped_module", inside("_orig_mod", t)),
    "stripped from the names: _checkpoint_wrapped_module., _orig_mod.",
    True,
  ),
  "FSDP": (
    lambda t: inside(
      "_fsdp_wrapped_module", behind("_fsdp_wrapped_module.", t)
    ),
    "stripped from the names: _fsdp_wrapped_module.",
    True,
  ),
  "MoCo v1": (
    lambda t: (
      behind("module.encoder_q.", headless(t) | {"fc.weight": OTHER})
      | behind("module.encoder_k.", t)
      | {"module.queue": OTHER, "module.queue_ptr": OTHER}
    ),
    "stripped from the names: module.encoder_q.; left out: module.encoder_k.",
    False,
  ),
  "MoCo v2": (
    lambda t: behind(
      "module.encoder_q.",
      headless(t) | {"fc.0.weight": OTHER, "fc.2.weight": OTHER},
    ),
    "left out: module.encoder_q.fc.0.weight, module.encoder_q.fc.2.weight",
    False,
  ),
  "MoCo v3": (
    lambda t: (
      behind("module.base_encoder.", headless(t) | {"fc.0.weight": OTHER})
      | behind("module.momentum_encoder.", headless(t))
      | {"module.predictor.0.weight": OTHER}
    ),
    "stripped from the names: module.base_encoder.; left out: ",
    False,
  ),
  "SimSiam": (
    lambda t: (
      behind("module.encoder.", headless(t) | {"fc.0.weight": OTHER})
      | {"module.predictor.0.weight": OTHER}
    ),
    "stripped from the names: module.encoder.; left out: "
    "module.predictor.0.weight, module.encoder.fc.0.weight",
    False,
  ),
  "DINO": (
    lambda t: (
      behind("module.backbone.", headless(t))
      | {"module.head.mlp.0.weight": OTHER}
    ),
    "stripped from the names: module.backbone.; left out: "
    "module.head.mlp.0.weight",
    False,
  ),
  "SwAV": (
    lambda t: behind(
      "module.",
      headless(t)
      | {"projection_head.0.weight": OTHER, "prototypes.weight": OTHER},
    ),
    "left out: module.projection_head.0.weight, module.prototypes.weight",
    False,
  ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_names_are_those_of_the_network(
  kind, state_dict, variables, tmp_path, capsys
):
  wrap, said, whole = WRAPPED[kind]
  save_file(wrap(state_dict), tmp_path / "x.safetensors")
  loaded = load_pretrained(
    tmp_path / "x.safetensors", CASE.model, **dict(CASE.fields)
  )
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  assert said in err
  expected = dict(variables["params"])
  if not whole:
    expected.pop("head")
  assert loaded.model.num_classes == (10 if whole else 0)
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.variables,
    {**variables, "params": expected},
  )


def test_a_file_without_a_head_gets_a_new_one(state_dict, tmp_path, capsys):
  save_file(
    behind("module.backbone.", headless(state_dict)),
    tmp_path / "x.safetensors",
  )
  fields = dict(CASE.fields)
  model, variables = fr.from_pretrained(
    tmp_path / "x.safetensors", CASE.model, num_classes=7, **fields
  )
  assert model.num_classes == 7
  assert variables["params"]["head"]["kernel"].shape == (64, 7)
  assert "the weights have 0 classes and the model 7" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["torchvision", "timm_v2", "transformers"])
def test_every_convention_is_found_behind_wrappers(names):
  model = fr.create_model(
    "resnetv2_50" if names == "timm_v2" else "resnet18",
    stage_sizes=(1, 1, 1, 1),
    stage_features=(4, 4, 4, 4),
    num_classes=3,
  )
  empty = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    fr.models.variables.variable_shapes(model),
  )
  tensors = fr.to_torch(empty, model, names=names)
  found, said = wrappers.unwrap(behind("net._orig_mod.", tensors))
  assert found.keys() == tensors.keys()
  assert said == ["stripped from the names: _orig_mod., net."]
  assert wrappers.unwrap(tensors) == (tensors, [])


def test_what_cannot_be_told_apart_is_refused(state_dict):
  two = behind("left.", state_dict) | behind("right.", state_dict)
  with pytest.raises(WeightsError, match="several networks, left., right.: gi"):
    wrappers.unwrap(two)
  twice = behind("_orig_mod.", state_dict) | state_dict
  with pytest.raises(WeightsError, match="two tensors have one name without _"):
    wrappers.unwrap(twice)


@pytest.mark.parametrize(
  ("name", "what"),
  [
    ("4.0.conv1.weight", "the children of a network in a Sequential"),
    ("features.0.weight", "a VGG, DenseNet"),
    ("patch_embed.proj.weight", "a vision transformer"),
    ("conv1_conv/kernel:0", "Keras"),
    ("visual.conv1.weight", "CLIP"),
  ],
)
def test_what_does_not_fit_is_likened_to_what_is_known(name, what):
  with pytest.raises(WeightsError, match=f"look like the names of {what}"):
    fr.from_torch({name: OTHER}, CASE.network())
