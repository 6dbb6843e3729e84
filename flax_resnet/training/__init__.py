"""From a recipe to a trained network."""

from flax_resnet.training.interrupt import Stopped as Stopped
from flax_resnet.training.loop import train as train
from flax_resnet.training.recipe import load_recipe as load_recipe
from flax_resnet.training.schema import InputError as InputError
