"""ResNet-20 on CIFAR-10 in 40 epochs: an evening of two CPU cores.

The network, batch and augmentation of section 4.2 of He et al. 2015, a quarter
of its length: one cycle of the learning rate, up to 0.2 and down to 0 (Smith &
Topin 2018), Nesterov's momentum, weight decay 5e-4 (as Zagoruyko & Komodakis
2016 train wide ResNets). Rate and weight decay are those of fashion_mnist, at
twice its batch; none was tried on CIFAR-10 before seed 0.

Command:   python train.py --config configs/cifar10_resnet20_short.py
Source:    https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1708.07120,
           https://arxiv.org/abs/1605.07146
Published: 91.25 % top-1 with ResNet-20, in 64,000 steps (He et al. 2015, Table
           6)
Measured:  91.37 % top-1 (seed 0, fixed beforehand; standard error 0.28), the
           last step; 96 minutes on one core of an AMD EPYC (Zen 5), JAX 0.10.2,
           at 355 images/s beside other work. A step of two idle cores of it
           has 513, which would be 65 minutes, and PyTorch's 891
           (benchmarks/scaling.py). Without skips, with
           --config.model.name=cifar_plain20: 89.34 % (seed 0, the last step;
           an Intel Xeon)
"""

from cifar10_resnet20 import get_config as paper
from ml_collections import ConfigDict


def get_config(batch_size: int = 128) -> ConfigDict:
  config = paper()
  config.update(
    batch_size=batch_size,
    num_epochs=40,
    num_steps=None,
    steps_per_call=25,
    log_every=125,
    eval_every=3_125,
    checkpoint_every=625,
  )
  config.optim.update(
    learning_rate=0.2 * batch_size / 128,
    schedule="one_cycle",
    warmup=0.15,
    nesterov=True,
    weight_decay=5e-4,
  )
  return config
