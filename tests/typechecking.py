"""The type checker of the tests, to which an int is a float, as in PEP 484."""

import beartype

_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
# What is wrong with their arguments, the package says in its own sentences.
_CHECKED_BY_SCHEMA = {
  "flax_resnet.models.resnet.ResNet.__init__",
  "flax_resnet.weights.preprocessing.Preprocessing.__init__",
}


def check(function):
  """Returns the function with checks of its arguments and of its result."""
  if f"{function.__module__}.{function.__qualname__}" in _CHECKED_BY_SCHEMA:
    return function
  return _beartype(function)
