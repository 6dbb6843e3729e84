"""From a recipe to a trained network."""

from etils import epy

# Imported when they are first used: "--help" needs none of it.
with epy.lazy_api_imports(globals()):
  from flax_resnet.errors import InputError as InputError
  from flax_resnet.errors import RunError as RunError
  from flax_resnet.recipes import load_recipe as load_recipe
  from flax_resnet.training.loop import train as train
  from flax_resnet.training.stop import Stopped as Stopped
