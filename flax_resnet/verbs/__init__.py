"""What `python -m flax_resnet` can do, a module each."""
