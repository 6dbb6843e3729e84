"""The type checker that jaxtyping's import hook puts around every function."""

from beartype import beartype, BeartypeConf

# As Python's own typing has it, an int is a float.
_CONF = BeartypeConf(is_pep484_tower=True)
# What is wrong with these, the package says in a sentence of its own.
_CHECKS_ITSELF = {"flax_resnet.models.resnet.ResNet.__init__"}


def checked(function):
  """Returns a function that checks its arguments and its result."""
  if f"{function.__module__}.{function.__qualname__}" in _CHECKS_ITSELF:
    return function
  return beartype(conf=_CONF)(function)
