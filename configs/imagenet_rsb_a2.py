"""ResNet-50 on ImageNet by procedure A2 of "ResNet strikes back".

LAMB for 300 epochs, binary cross-entropy, RandAugment of magnitude 7, mixup and
cutmix, each image three times in a batch, stochastic depth. Other than there:
batch 2016, which three copies of an image fill, for 2048; BatchNorm over 504
examples for the 512 of each of their 4 GPUs; the resize of evaluation is
bilinear.

Command:   python train.py --config configs/imagenet_rsb_a2.py \
             --config.data.data_dir=DIR
Source:    https://arxiv.org/abs/2110.00476, Table 2
Published: 79.8 % top-1
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = goyal()
  config.update(
    batch_size=2016, num_epochs=300, eval_every=635, checkpoint_every=635
  )
  config.model.update(norm_group_size=504, stochastic_depth=0.05)
  config.data.update(
    center_crop_fraction=0.95,
    policy="randaugment_increasing",
    policy_magnitude=7.0,
    policy_magnitude_std=0.5,
    repeated_augmentation=3,
  )
  config.augment.update(mixup=0.1, cutmix=1.0)
  config.loss.update(name="binary_cross_entropy")
  config.optim.update(
    name="lamb",
    learning_rate=5e-3,
    schedule="cosine",
    warmup=5 / 300,
    warmup_start=0.0,
    weight_decay=0.02,
    clip_norm=1.0,
  )
  return config
