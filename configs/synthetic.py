"""ResNet-50 on made-up images: how fast the step is without any data.

Command:   python train.py --config configs/synthetic.py
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as imagenet
from ml_collections import ConfigDict


def get_config(batch_size: int = 8) -> ConfigDict:
  config = imagenet(batch_size)
  config.eval_batch_size = 8
  config.num_epochs = None
  config.num_steps = 20
  config.log_every = 5
  config.eval_every = 20
  config.checkpoint_every = 20
  config.model.norm_group_size = None
  config.model.dtype = "float32"
  config.data.name = "synthetic"
  config.data.eval_split = "test"
  config.data.num_threads = 2
  return config
