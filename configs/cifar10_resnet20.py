"""ResNet-20 on CIFAR-10, as in section 4.2 of He et al. 2015.

Batch 128, 64,000 steps, learning rate 0.1 divided by 10 at 32,000 and 48,000,
weight decay 1e-4 (here on the kernels alone), crops of images padded by 4
pixels, mirroring, option A shortcuts. The same for 32, 44, 56 and 1202 layers
by --config.model.name=cifar_resnet32, for plain nets by =cifar_plain20, for
option B or C by --config.model.shortcut=projection or =projection_all; for 110
layers see cifar10_resnet110. benchmarks/variants.py runs the whole table.

Command:   python train.py --config configs/cifar10_resnet20.py
Source:    https://arxiv.org/abs/1512.03385, Table 6
Published: 8.75 % error (one run); 7.51, 7.17, 6.97 and 7.93 % with 32, 44, 56
           and 1202 layers
Measured:  not yet at full length here. The first 400 steps (1 seed, with the
           schedule squeezed into them by --config.num_steps=400): training
           loss 2.16 to 1.31, 54.1 % top-1, 184 images/s on 2 CPU cores
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      batch_size=128,
      eval_batch_size=500,
      num_steps=64_000,
      log_every=100,
      eval_every=2_000,
      checkpoint_every=2_000,
      keep_checkpoints=2,
      model=dict(
        name="cifar_resnet20",
        num_classes=10,
      ),
      data=dict(
        name="cifar10",
        train_split="train",
        eval_split="test",
        image_size=32,
        in_memory=True,
        num_threads=2,
      ),
      augment=dict(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        crop_padding=4,
      ),
      loss=dict(),  # Cross-entropy.
      optim=dict(
        name="sgd",
        learning_rate=0.1,
        schedule="step",
        boundaries=(32 / 64, 48 / 64),
        decay_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
      ),
    )
  )
