"""Residual networks in JAX/Flax linen, and the trainer around them."""

from etils import epy

# Imported when they are first used, and JAX with them: "--help" needs none of
# it, and Ctrl-C while JAX is imported ends a command as at any other time.
with epy.lazy_api_imports(globals()):
  from flax_resnet.insight.grad_cam import grad_cam as grad_cam
  from flax_resnet.insight.grad_cam import (
    grad_cam_plus_plus as grad_cam_plus_plus,
  )
  from flax_resnet.models import BasicBlock as BasicBlock
  from flax_resnet.models import BottleneckBlock as BottleneckBlock
  from flax_resnet.models import create_model as create_model
  from flax_resnet.models import fold_batch_norm as fold_batch_norm
  from flax_resnet.models import list_models as list_models
  from flax_resnet.models import PreActBasicBlock as PreActBasicBlock
  from flax_resnet.models import PreActBottleneckBlock as PreActBottleneckBlock
  from flax_resnet.models import ResNet as ResNet
  from flax_resnet.training import load_recipe as load_recipe
  from flax_resnet.training import train as train
  from flax_resnet.weights import from_pretrained as from_pretrained
  from flax_resnet.weights import from_torch as from_torch
  from flax_resnet.weights import save_pretrained as save_pretrained
  from flax_resnet.weights import to_torch as to_torch

__version__ = "0.2.0"
