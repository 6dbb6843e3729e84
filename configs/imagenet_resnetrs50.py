"""ResNet-RS-50 on ImageNet at 160 pixels, as in Bello et al. 2021.

SGD for 350 epochs, batch 4096, learning rate 0.1 for each 256 examples along a
cosine after 5 epochs of warm-up, weight decay 4e-5, RandAugment of two
operations of magnitude 10, label smoothing, dropout before the head, a moving
average. The numbers are those of the authors' configuration in TensorFlow's
Model Garden; other than there, activations are ReLU as in the paper, and the
running statistics of BatchNorm are not those of the last step alone. BatchNorm
is over the 64 examples of each of 64 cores.

Command:   python train.py --config configs/imagenet_resnetrs50.py \
             --config.data.data_dir=DIR
Source:    https://arxiv.org/abs/2103.07579; https://github.com/tensorflow/models,
           official/vision/configs/experiments/image_classification/
           imagenet_resnetrs50_i160.yaml
Published: 78.8 % top-1 in the paper, 79.1 % in the Model Garden
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 4096) -> ConfigDict:
  config = goyal(batch_size)
  config.update(
    num_epochs=350,
    eval_every=312,
    checkpoint_every=312,
    ema_decay=0.9999,
  )
  config.model.update(
    name="resnetrs50",
    norm_group_size=64,
    head_dropout=0.25,
  )
  config.data.update(
    image_size=160,
    policy="randaugment",
    policy_magnitude=10.0,
    policy_num_ops=2,
  )
  config.loss.label_smoothing = 0.1
  config.optim.update(
    schedule="cosine",
    warmup=5 / 350,
    warmup_start=0.0,
    nesterov=False,
    weight_decay=4e-5,
  )
  return config
