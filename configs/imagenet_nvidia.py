"""ResNet-50 on ImageNet as in NVIDIA's DeepLearningExamples, 250 epochs.

Batch 2048, learning rate 0.256 for each 256 examples, falling along a cosine
after 8 epochs of warm-up, momentum 0.875, weight decay 2^-15 not on BatchNorm,
label smoothing and mixup; BatchNorm over the 256 examples of each of 8 GPUs.

Command:   python train.py --config configs/imagenet_nvidia.py \
             --config.data.data_dir=DIR
Source:    https://github.com/NVIDIA/DeepLearningExamples, PyTorch/
           Classification/ConvNets/resnet50v1.5
Published: 78.4 % top-1 (77.1 % after 90 epochs without mixup)
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 2048) -> ConfigDict:
  config = goyal(batch_size)
  config.update(num_epochs=250, eval_every=625, checkpoint_every=625)
  config.model.norm_group_size = 256
  config.augment.mixup = 0.2
  config.loss.label_smoothing = 0.1
  config.optim.update(
    learning_rate=0.256 * batch_size / 256,
    schedule="cosine",
    warmup=8 / 250,
    warmup_start=0.0,
    momentum=0.875,
    nesterov=False,
    weight_decay=2**-15,
  )
  return config
