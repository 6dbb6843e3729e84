"""ResNet-50 on ImageNet in few epochs on images that grow, as FFCV trains it.

88 epochs on 160 pixels until epoch 71 and on 192 after it, evaluated on 256;
batch 4096, one cycle of the learning rate with its peak of 1.7 at epoch 2,
label smoothing, BatchNorm over the 512 examples of each of 8 GPUs. Shorter runs
by --config.num_epochs=16 and --config.optim.warmup=0.125. Other than there:
nothing is blurred before a stride, evaluation does not look at mirrored images
as well, and decoding is from JPEG at full size.

Command:   python train.py --config configs/imagenet_progressive.py \
             --config.data.data_dir=DIR
Source:    https://github.com/libffcv/ffcv-imagenet, rn50_88_epochs.yaml
Published: 78.4 % top-1 after 88 epochs, 78.0 after 56, 77.2 after 40, 76.6
           after 32, 75.6 after 24, 73.8 after 16
Measured:  not yet measured here
"""

from imagenet_resnet50 import get_config as goyal
from ml_collections import ConfigDict


def get_config(batch_size: int = 4096) -> ConfigDict:
  config = goyal(batch_size)
  peak = 1.7 * batch_size / 4096
  config.update(num_epochs=88, eval_every=312, checkpoint_every=312)
  config.model.update(zero_init_residual=False, norm_group_size=512)
  config.data.update(
    image_size=192, early_image_sizes=((71 / 88, 160),), eval_image_size=256
  )
  config.loss.label_smoothing = 0.1
  config.optim.update(
    learning_rate=peak,
    schedule="one_cycle",
    warmup=2 / 88,
    warmup_start=1e-4 * peak,
    nesterov=False,
  )
  return config
