"""ResNet-50 on ImageNet by procedure A3 of "ResNet strikes back".

As A2, for 100 epochs on 160 pixels, evaluated on 224; with a weaker
RandAugment, each image once in a batch, and no stochastic depth.

Command:   python train.py --config configs/imagenet_rsb_a3.py \
             --config.data.data_dir=DIR
Source:    https://arxiv.org/abs/2110.00476, Table 2
Published: 78.1 % top-1
Measured:  not yet measured here
"""

from imagenet_rsb_a2 import get_config as a2
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = a2()
  config.update(
    batch_size=2048, num_epochs=100, eval_every=625, checkpoint_every=625
  )
  config.model.update(norm_group_size=512, stochastic_depth=0.0)
  config.data.update(
    image_size=160,
    eval_image_size=224,
    policy_magnitude=6.0,
    repeated_augmentation=1,
  )
  config.optim.update(learning_rate=8e-3, warmup=5 / 100)
  return config
