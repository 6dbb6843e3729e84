"""The networks, in plain linen."""

from flax_resnet.models.blocks import BasicBlock as BasicBlock
from flax_resnet.models.blocks import BottleneckBlock as BottleneckBlock
from flax_resnet.models.preact import PreActBasicBlock as PreActBasicBlock
from flax_resnet.models.preact import (
  PreActBottleneckBlock as PreActBottleneckBlock,
)
from flax_resnet.models.resnet import ResNet as ResNet
from flax_resnet.models.variables import fold_batch_norm as fold_batch_norm
from flax_resnet.models.zoo import create_model as create_model
from flax_resnet.models.zoo import list_models as list_models
