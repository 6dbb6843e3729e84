"""Fine-tuning of published weights on a folder of photographs.

All layers of ResNet-50, with the data and augmentation of configs/folder.py at
224 pixels: momentum 0.9, weight decay 1e-4 and a cosine from 0.01 for each 256
examples, as many studies fine-tune ResNets (Li et al. 2020, section 1), where
training begins at ten times as much. For other weights give --config.init_from
and --config.model.name.

Command:   python train.py --config configs/finetune.py --config.data.root=DIR
Source:    https://arxiv.org/abs/2002.11770
Measured:  not with ResNet-50. ResNet-20 from cifar_resnet20.cifar10 on flowers
           at 64 pixels: 44.61 % after 5 epochs (1 seed), where 0.02 for 64
           examples gave 65.70 % (benchmarks/RESULTS.md): for so few steps from
           so far a set the rate is small; it was not chosen by these
"""

from folder import get_config as folder
from ml_collections import ConfigDict


def get_config(batch_size: int = 64) -> ConfigDict:
  config = folder(batch_size)
  config.update(num_epochs=10)
  config.init_from = "resnet50.a1_in1k"
  config.model = ConfigDict(dict(name="resnet50", num_classes=None))
  config.data.image_size = 224
  config.optim.update(
    learning_rate=0.01 * batch_size / 256,
    weight_decay=1e-4,
  )
  return config
