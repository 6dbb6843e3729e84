"""From a data set's name to uint8 batches on the host."""

from flax_resnet.data.dataset import Dataset as Dataset
from flax_resnet.data.dataset import load as load
