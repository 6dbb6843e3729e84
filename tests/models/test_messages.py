"""The sentences on networks and calls that cannot be."""

from functools import partial
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_resnet as fr
from flax_resnet.models.layers import Layers
from flax_resnet.models.norms import BatchNorm, GroupNorm
from flax_resnet.models.shortcut import Shortcut
from flax_resnet.models.variables import mismatch

FLOATS = "float32, bfloat16, float16 or float64"
# Fields of a ResNet-18, and how the sentence on them begins.
FIELDS = [
  ({"num_classes": -1}, "num_classes is -1: use 0 to 10,000,000"),
  ({"block": "basic"}, "block is 'basic': use a class of blocks"),
  ({"dtype": None}, f"dtype is None: use {FLOATS}"),
  ({"dtype": "bf16"}, f"dtype is 'bf16': use {FLOATS}"),
  ({"stage_sizes": (1, 1)}, "stage_sizes has 2 entries and stage_features 4: "),
  ({"stage_sizes": (10**4, 1, 1, 1)}, "stage_sizes is (10000, 1, 1, 1): use 1"),
  (
    {"stage_sizes": (), "stage_features": ()},
    "stage_sizes is (): use 1 to 10,000 blocks in all",
  ),
  ({"dropout": 0.1}, "dropout is an option of Wide ResNets of basic blocks ("),
  (
    {"space_to_depth": True, "stem": "cifar"},
    "space_to_depth is a way to compute the 7x7 stem: stem 'cifar' has none",
  ),
  (
    {"norm": "none", "zero_init_residual": True},
    "zero_init_residual starts the last scale of BatchNorm at 0, and with ",
  ),
  (
    {"norm": "layer"},
    "norm is 'layer': use one of 'batch', 'group', 'evonorm', "
    "'filter_response', 'none'",
  ),
  (
    {"norm": "group", "norm_group_size": 4},
    "norm_group_size is of BatchNorm, and norm='group' normalizes each ",
  ),
  (
    {"norm": "group", "stem": "tiered"},
    "norm='group' is over 32 groups of channels, which 24 channels are not: u",
  ),
  (
    {"norm": "evonorm", "stage_features": (16, 32, 64, 128)},
    "norm='evonorm' is over 32 groups of channels, which 16 channels are not",
  ),
  (
    {"global_pool": "none"},
    "num_classes is 1000, and a head needs a pooled map: use 0 with global_po",
  ),
  (
    {"downsampling": "blur", "stem": "bit"},
    "downsampling='blur' is an option of basic and bottleneck blocks behind ",
  ),
  (
    {"downsampling": "average", "block": fr.PreActBasicBlock},
    "downsampling='average' is an option of basic and bottleneck blocks be",
  ),
  (
    {
      "block": fr.PreActBasicBlock,
      "zero_init_residual": True,
      "weight_standardization": True,
    },
    "zero_init_residual starts the last kernel of each block at 0, which can",
  ),
  (
    {"block": [fr.BasicBlock, fr.BottleneckBlock]},
    "block has 2 entries and stage_sizes 4: give one of each a stage, or one",
  ),
  (
    {"block": [fr.BasicBlock, fr.PreActBasicBlock] * 2},
    "block has classes with the norms before the convolutions and others with",
  ),
  (
    {"block_widths": [(1, 2, 3)] * 8},
    "block_widths is of bottleneck blocks that differ from each other (ecares",
  ),
  (
    {
      "block_widths": [(1, 2, 3)] * 8,
      "block": fr.BottleneckBlock,
      "scan": True,
    },
    "block_widths is of bottleneck blocks that differ from each other (ecares",
  ),
  (
    {"block_widths": [(1, 2, 3)] * 7, "block": fr.BottleneckBlock},
    "block_widths is not three numbers of channels for each of the 8 blocks",
  ),
  (
    {"block_widths": [(1, 2)] * 8, "block": fr.BottleneckBlock},
    "block_widths is not three numbers of channels for each of the 8 blocks",
  ),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_fields_that_cannot_be(fields, message):
  with pytest.raises(ValueError) as error:
    fr.create_model("resnet18", **fields)
  assert str(error.value).startswith(message)


def fold(name, **fields):
  fr.fold_batch_norm(fr.create_model(name, **fields), {"params": {}})


SHRINK = Shortcut(partial(Layers().conv, 4, 1), "identity")
IN_THREES = partial(BatchNorm(group_size=3).init, train=True)
IMAGES, KEY = jnp.ones((8, 2, 2, 8)), jax.random.key(0)

FREEZE = partial(fr.create_model("cifar_resnet8").init, KEY, train=False)
CALLS = [
  (partial(fr.create_model, "resnet51"), "did you mean 'resnet50'?"),
  (partial(fr.create_model, "zebra"), "unknown model 'zebra': use resnet18, "),
  (
    partial(fr.create_model, "resnet50.a1_in1"),
    "unknown tag 'resnet50.a1_in1': did you mean 'resnet50.a1_in1k'?",
  ),
  (
    partial(fr.create_model, "resnet18.zebra"),
    "unknown tag 'resnet18.zebra': ",
  ),
  (partial(fr.create_model, "resnet51.a1_in1k"), "unknown model 'resnet51.a1"),
  (partial(fr.create_model, "resnet200.x"), "resnet200 has no published weig"),
  (
    partial(fr.create_model, "resnet50.a1_in1k", pretrained=True),
    "create_model gives resnet50.a1_in1k without weights: use from_pretrained"
    '("resnet50.a1_in1k") for the network and its weights',
  ),
  (partial(fold, "wrn_40_4"), "BatchNorm of a pre-activation network comes be"),
  (partial(fold, "resnet18", norm="none"), "the network has no BatchNorm to f"),
  (partial(fold, "resnet50_gn"), "the network has no BatchNorm to fold"),
  (
    partial(fold, "resnet50", weight_standardization=True),
    "BatchNorm behind standardized kernels cannot be folded into them: they ",
  ),
  (
    partial(GroupNorm().init, KEY, jnp.ones((1, 2, 2, 24)), train=False),
    "24 channels cannot be normalized in 32 groups: use norm=",
  ),
  (
    partial(SHRINK.apply, {}, IMAGES, (8, 2, 2, 4), train=False),
    'cannot go from 8 to 4 channels: use shortcut="projection"',
  ),
  (
    partial(FREEZE, jnp.ones((1, 8, 8, 3)), frozen_stages=4),
    "frozen_stages is 4: use 0 to 3",
  ),
  (
    partial(IN_THREES, KEY, IMAGES),
    "a batch of 8 examples cannot be normalized in groups of 3: choose a ",
  ),
]


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_calls_that_cannot_be(call, message):
  with pytest.raises(ValueError) as error:
    call()
  assert message in str(error.value)


@pytest.mark.deep
def test_pixels_that_are_not_normalized():
  """In a process whose annotations are not checked, as in a user's."""
  script = """
import jax.numpy as jnp, flax_resnet as fr, jax
model = fr.create_model("cifar_resnet8")
for images in (jnp.ones((2, 8, 8, 3), "uint8"), jnp.ones((8, 8, 3))):
  try:
    model.init(jax.random.key(0), images, train=False)
  except ValueError as error:
    print(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  advice = "give normalized images, float [b, h, w, c]"
  assert done.stdout.splitlines() == [
    f"images are uint8 [2, 8, 8, 3]: {advice}",
    f"images are float32 [8, 8, 3]: {advice}",
  ]


def test_fields_that_there_are_not():
  with pytest.raises(TypeError, match=r"num_clases.*mean 'num_classes'\?"):
    fr.create_model("resnet18", num_clases=3)
  with pytest.raises(TypeError, match="'parent': use stage_sizes, block, "):
    fr.create_model("resnet18", parent=None)


def test_lists_and_numbers_of_numpy_are_taken():
  model = fr.create_model(
    "resnet18",
    num_classes=np.int64(3),
    stage_sizes=[1, 1],
    stage_features=[8, np.int32(16)],
    stochastic_depth=np.float32(0.1),
    use_bias=np.True_,
    dtype=np.dtype("float64"),
  )
  assert model.block_names == ["stage1_block1", "stage2_block1"]
  assert hash(model) == hash(model.clone())


def test_what_does_not_fit_is_listed():
  expected = {"a": [3], "b": [1], "c": [2]}
  assert mismatch(expected, dict(expected)) == ""
  assert mismatch(expected, {"a": [4], "b": [1], "d": [5]}) == (
    "missing: c; unexpected: d; different: a [4] instead of [3]"
  )
  many = {f"x{n}": [n] for n in range(10)}
  assert mismatch(many, {}) == (
    "missing: x0, x1, x2, x3, x4, x5, x6, x7 and 2 more"
  )
