"""ResNet-50 on ImageNet as torchvision trained its first weights.

Batch 256, 90 epochs, learning rate 0.1 divided by 10 every 30 epochs, no
warm-up, plain momentum, weight decay 1e-4 also on scales and biases, BatchNorm
over the 32 examples of each of 8 GPUs.

Command:   python train.py --config configs/imagenet_torchvision_v1.py \
             --config.data.data_dir=DIR
Source:    https://github.com/pytorch/vision/tree/main/references/classification
Published: 76.13 % top-1 (IMAGENET1K_V1)
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 256) -> ConfigDict:
  config = goyal(batch_size)
  config.update(eval_every=5_004, checkpoint_every=5_004)
  config.model.zero_init_residual = False
  config.optim.update(
    warmup=0.0,
    boundaries=(30 / 90, 60 / 90),
    nesterov=False,
    decay_all=True,
  )
  return config
