"""cifar10_resnet20 in 1,000 steps, to compare networks on CPU.

The schedule of section 4.2 of He et al. 2015 squeezed into 2.56 epochs, to see
what nets of other depths and shortcuts come to. docs/skip_connections.md has
what was seen.

Command:   python train.py --config configs/cifar10_short.py \
             --workdir runs/plain56 --config.model.name=cifar_plain56
Source:    https://arxiv.org/abs/1512.03385, section 4.2, but for the length
Measured:  top-1 67.74 % (ResNet-20), 57.48 % (plain-20), 49.14 % (ResNet-56),
           33.33 % (plain-56), 1 seed each; 67.73 % (ResNet-20) and 56.89 %
           (plain-20) in a second run by the same commands; 395 and 126
           images/s with 20 and 56 layers on 2 CPU cores, JAX 0.10.2
"""

from cifar10_resnet20 import get_config as full
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = full()
  config.num_steps = 1_000
  config.log_every = 20
  config.eval_every = 200
  config.checkpoint_every = 200
  return config
