"""The wording of what a wrong recipe or folder ends with, in one table."""

import math

import pytest

from flax_resnet import create_model, schema, sharding
from flax_resnet.errors import InputError
from flax_resnet.training.accumulation import accumulation_group_size
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optimizers import make_optimizer
from flax_resnet.training.schedules import make_schedule

OPTIM = {"name": "sgd", "learning_rate": 0.1, "schedule": "cosine"}

# Changes of `config.optim`, and the sentence.
WRONG_OPTIM = [
  ({"learning_rate": 0.0}, "learning_rate is 0.0: use more than 0"),
  ({"learning_rate": math.nan}, "learning_rate is nan: use more than 0"),
  ({"learning_rate": math.inf}, "learning_rate is inf: use finite numbers, "),
  ({"learning_rat": 0.1}, "learning_rat is unknown: did you mean 'learning_ra"),
  ({"schedule": "cosin"}, "schedule is 'cosin': use one of 'cosine', 'step', "),
  ({"reference_batch_size": 0}, "reference_batch_size is 0: use 1 or more or "),
  ({"warmup": 1.0}, "warmup is 1.0: use 0 or more, less than 1"),
  ({"warmup_start": -0.1}, "warmup_start is -0.1: use 0 or more"),
  (
    {"boundaries": (0.5, 30)},
    "boundaries is (0.5, 30): use a tuple of float, ",
  ),
  ({"decay_rate": 0.0}, "decay_rate is 0.0: use more than 0, up to 1"),
  ({"power": 0.0}, "power is 0.0: use more than 0"),
  ({"final_rate": 1.1}, "final_rate is 1.1: use 0 to 1"),
  ({"momentum": 1.0}, "momentum is 1.0: use 0 or more, less than 1"),
  ({"weight_decay": -1e-4}, "weight_decay is -0.0001: use 0 or more"),
  (
    {"betas": (0.9, 1.0)},
    "betas is (0.9, 1.0): use a tuple of float, 0 or mor",
  ),
  ({"eps": -1e-8}, "eps is -1e-08: use 0 or more or None"),
  ({"trust_coefficient": 0.0}, "trust_coefficient is 0.0: use more than 0"),
  ({"clip_norm": -1.0}, "clip_norm is -1.0: use 0 or more"),
  ({"num_steps": 3}, "num_steps is unknown: "),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG_OPTIM)
def test_a_wrong_key_of_the_optimizer(changes, sentence):
  with pytest.raises(InputError) as error:
    schema.arguments(
      "config.optim",
      OPTIM | changes,
      make_schedule,
      make_optimizer,
      given=("num_steps", "batch_size", "rate"),
    )
  assert str(error.value).startswith(f"config.optim.{sentence}")


def group_size(parts, group):
  model = create_model("cifar_resnet8", num_classes=10, norm_group_size=group)
  mesh = sharding.make_mesh()  # Of 8 devices.
  return accumulation_group_size(model, 64, parts, mesh, frozen=False)


# Keys that are right alone and not together.
TOGETHER = [
  (
    lambda: make_schedule(9, 9, schedule="one_cycle", learning_rate=0.1),
    "warmup is 0.0, and one_cycle rises before it falls: use the share of the "
    "run in which it rises",
  ),
  (
    lambda: make_optimizer(lambda step: 0.1, name="adamw", betas=(0.9,)),
    "betas has 1 numbers: use 2",
  ),
  (
    lambda: make_optimizer(lambda step: 0.1, name="lars", decay_all=True),
    "decay_all is an option of sgd: set it to False, or name, which is lars, "
    "to sgd",
  ),
  (
    lambda: make_loss(target_threshold=0.2),
    "target_threshold is 0.2, which cross_entropy has no use for: use None",
  ),
  (
    lambda: make_loss(
      name="binary_cross_entropy", target_threshold=0.2, label_smoothing=0.1
    ),
    "target_threshold is 0.2, which undoes label_smoothing 0.1: use None, or "
    "label_smoothing=0.0",
  ),
  (
    lambda: group_size(3, 8),
    "accumulate is 3, which does not divide batch_size 64: use a divisor of it",
  ),
  (
    lambda: group_size(16, 1),
    "accumulate is 16, which makes parts of 4 examples that 8 devices cannot "
    "share evenly: use fewer parts",
  ),
  (
    lambda: group_size(4, None),
    "accumulate is 4 and model.norm_group_size None, with which BatchNorm "
    "needs all 64 examples at once: set model.norm_group_size to 16 or a "
    "divisor of it",
  ),
  (
    lambda: group_size(4, 32),
    "accumulate is 4, which makes parts of 16 examples that are no groups of "
    "32: set model.norm_group_size to a divisor of 16",
  ),
]


@pytest.mark.parametrize(("call", "sentence"), TOGETHER)
def test_keys_that_do_not_go_together(call, sentence):
  with pytest.raises(ValueError) as error:
    call()
  assert str(error.value) == sentence
