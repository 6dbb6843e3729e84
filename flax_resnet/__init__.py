"""Residual networks in JAX/Flax linen, and the trainer around them."""

from flax_resnet.models import BasicBlock as BasicBlock
from flax_resnet.models import BottleneckBlock as BottleneckBlock
from flax_resnet.models import create_model as create_model
from flax_resnet.models import list_models as list_models
from flax_resnet.models import ResNet as ResNet

__version__ = "0.1.0"
