"""The wording of what a wrong recipe or folder ends with, in one table."""

import pytest

from flax_resnet import create_model, sharding
from flax_resnet.training.accumulation import accumulation_group_size
from flax_resnet.training.losses import make_loss
from flax_resnet.training.optimizers import make_optimizer
from flax_resnet.training.schedules import make_schedule


def group_size(parts, group):
  model = create_model("cifar_resnet8", num_classes=10, norm_group_size=group)
  mesh = sharding.make_mesh()  # Of 8 devices.
  return accumulation_group_size(model, 64, parts, mesh, frozen=False)


# Keys that are right alone and not together.
TOGETHER = [
  (
    lambda: make_schedule(9, schedule="one_cycle", learning_rate=0.1),
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
    lambda: make_loss(focal_alpha=0.25),
    "focal_alpha is 0.25, which cross_entropy has no use for: use None, or "
    "class_weights",
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
