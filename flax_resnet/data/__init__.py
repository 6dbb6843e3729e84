"""From a data set's name to uint8 batches; this room imports no other."""

from flax_resnet.data.datasets import Dataset as Dataset
from flax_resnet.data.opening import load as load
