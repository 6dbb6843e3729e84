"""A wide ResNet of 10 layers on CIFAR-10 in 24 epochs, for a fast GPU.

The shape of the nets of Page's "How to train your ResNet": four stages of 64 to
512 channels, here of one basic block each. All images are on the device, 49
steps a call; batch 512, one cycle of the learning rate up to 0.4, crops of
images padded by 4, mirroring, label smoothing, evaluation of a moving average.

Command:   python train.py --config configs/cifar10_fast.py
Source:    after https://myrtle.ai/learn/how-to-train-your-resnet; the net, and
           so the result, is not theirs
Published: 94 % in 26 s on a V100 (Page 2019), in 2.6 s on an A100 (Jordan 2024,
           https://arxiv.org/abs/2404.00498, of another net)
Measured:  not yet measured here
"""

from cifar10_resnet20 import get_config as paper
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = paper()
  config.update(
    batch_size=512,
    num_epochs=24,
    num_steps=None,
    steps_per_call=49,
    log_every=98,
    eval_every=1_176,
    checkpoint_every=2_344,
    ema_decay=0.99,
    ema_every=5,
  )
  config.model.update(
    name="cifar_resnet18", stage_sizes=(1, 1, 1, 1), dtype="bfloat16"
  )
  config.loss.label_smoothing = 0.2
  config.optim.update(
    learning_rate=0.4,
    schedule="one_cycle",
    warmup=5 / 24,
    nesterov=True,
    weight_decay=5e-4,
  )
  return config
