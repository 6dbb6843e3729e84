"""ResNet-50 on ImageNet as torchvision trained its second weights.

Batch 1024, 600 epochs, learning rate 0.5 falling along a cosine after 5 epochs
of warm-up, label smoothing, TrivialAugment, random erasing, mixup and cutmix,
each image four times in a batch, weight decay 2e-5 not on BatchNorm, an average
of the weights, trained on 176 pixels and evaluated on 224 of 232. Their average
moves every 32 steps by 2e-5 * 1024 * 32 / 600.

Command:   python train.py --config configs/imagenet_torchvision_v2.py \
             --config.data.data_dir=DIR
Source:    https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives
Published: 80.86 % top-1 (IMAGENET1K_V2)
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 1024) -> ConfigDict:
  config = goyal(batch_size)
  config.update(
    num_epochs=600,
    ema_decay=1 - 2e-5 * batch_size * 32 / 600,
    ema_every=32,
  )
  config.model.update(zero_init_residual=False, norm_group_size=128)
  config.data.update(
    image_size=176,
    eval_image_size=224,
    center_crop_fraction=224 / 232,
    policy="trivialaugment",
    repeated_augmentation=4,
  )
  config.augment.update(mixup=0.2, cutmix=1.0, random_erasing=0.1)
  config.loss.label_smoothing = 0.1
  config.optim.update(
    learning_rate=0.5 * batch_size / 1024,
    schedule="cosine",
    warmup=5 / 600,
    warmup_start=0.005 * batch_size / 1024,
    nesterov=False,
    weight_decay=2e-5,
  )
  return config
