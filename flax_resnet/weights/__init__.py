"""Weights from PyTorch and back."""

from flax_resnet.errors import WeightsError as WeightsError
from flax_resnet.weights.pretrained import from_pretrained as from_pretrained
from flax_resnet.weights.pretrained import load_pretrained as load_pretrained
from flax_resnet.weights.pretrained import Pretrained as Pretrained
from flax_resnet.weights.publish import save_pretrained as save_pretrained
from flax_resnet.weights.state_dict import from_torch as from_torch
from flax_resnet.weights.state_dict import to_torch as to_torch
