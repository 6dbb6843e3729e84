"""ResNet-50 on ImageNet, as in Goyal et al. 2017.

Batch 1024, 90 epochs, learning rate 0.1 for each 256 examples, reached from 0.1
in 5 epochs of warm-up, divided by 10 at epochs 30, 60 and 80, weight decay 1e-4
not on BatchNorm, the last scale of each block started at 0, BatchNorm over
groups of 32 as over the 32 examples of each of their workers; no label
smoothing. With --config.batch_size=8192 the rate is that of 8192; a peak below
0.1 is reached from itself.

Command:   python train.py --config configs/imagenet_resnet50.py \
             --config.data.data_dir=DIR
Source:    https://arxiv.org/abs/1706.02677, Table 1 and section 5.1
Published: 76.40 % top-1 with batch 256, 76.26 % with 8192, 5 runs each
Measured:  not yet measured here
"""

from ml_collections import ConfigDict


def get_config(batch_size: int = 1024) -> ConfigDict:
  peak = 0.1 * batch_size / 256
  return ConfigDict(
    dict(
      seed=0,
      batch_size=batch_size,
      eval_batch_size=1024,
      num_epochs=90,
      log_every=100,
      eval_every=1_251,
      checkpoint_every=1_251,
      keep_checkpoints=3,
      model=dict(
        name="resnet50",
        num_classes=1000,
        zero_init_residual=True,
        norm_group_size=32,
        dtype="bfloat16",
      ),
      data=dict(
        name="imagenet2012",
        train_split="train",
        eval_split="validation",
        image_size=224,
        random_resized_crop=True,
        center_crop_fraction=224 / 256,
        num_threads=16,
      ),
      augment=dict(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
      ),
      loss=dict(),  # Cross-entropy.
      optim=dict(
        name="sgd",
        learning_rate=peak,
        schedule="step",
        warmup=5 / 90,
        warmup_start=min(0.1, peak),
        boundaries=(30 / 90, 60 / 90, 80 / 90),
        decay_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
      ),
    )
  )
