"""The verbs of `python -m flax_resnet`, a file each, and the flags they share.

A verb has its help in its docstring, `add_arguments(parser)` and `run(args)`.
"""
