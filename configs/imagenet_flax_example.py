"""ResNet-50 on ImageNet with the hyper-parameters of Flax's own example.

Batch 1024, 100 epochs, learning rate 0.1 for each 256 examples, falling along a
cosine after 5 epochs of warm-up, Nesterov momentum, weight decay 1e-4 on
kernels, BatchNorm over the 128 examples of each of 8 cores. Other than there:
evaluation counts all 50,000 images, and the resize is bilinear.

Command:   python train.py --config configs/imagenet_flax_example.py \
             --config.data.data_dir=DIR
Source:    https://github.com/google/flax/tree/main/examples/imagenet
Published: 76.37 % top-1 on a TPU v3-8; 76.27 to 76.72 % on other machines
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 1024) -> ConfigDict:
  config = goyal(batch_size)
  config.num_epochs = 100
  config.model.norm_group_size = 128
  config.optim.update(schedule="cosine", warmup=5 / 100, warmup_start=0.0)
  return config
