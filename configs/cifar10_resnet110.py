"""ResNet-110 on CIFAR-10, as in section 4.2 of He et al. 2015.

As cifar10_resnet20, but for the first 400 steps at a learning rate of 0.01: by
then, the paper says, the training error is below 80 %.

Command:   python train.py --config configs/cifar10_resnet110.py
Source:    https://arxiv.org/abs/1512.03385, Table 6
Published: 6.43 % error (best of 5 runs; 6.61 +- 0.16)
Measured:  not yet measured here
"""

from cifar10_resnet20 import get_config as shallower
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = shallower()
  config.model.name = "cifar_resnet110"
  config.optim.update(
    warmup=400 / 64_000, warmup_start=0.01, warmup_method="constant"
  )
  return config
