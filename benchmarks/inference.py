"""Inference: this package, Flax's example and PyTorch in turn.

    pip install torch
    python benchmarks/inference.py                 # four nets, batch 1 and 32
    python benchmarks/inference.py resnet50-224 --batch 8

Prints images/s as `train_step.py` does: logits of one batch of normalised
images that lies on the device. "Folded" networks have their BatchNorm in the
convolutions: `flax_resnet.fold_batch_norm`, and `torch.fx`'s `fuse`.
"""

import functools
import os

from train_step import arrays, Case, compare
from turns import Work


def normalised(case: Case):
  """Returns images float32 [b, h, w, 3]."""
  return (arrays(case)[0].astype("float32") - 127.5) / 64


def _jitted(apply, variables, images) -> Work:
  import jax

  compiled = jax.jit(functools.partial(apply, train=False))
  variables, images = jax.device_put((variables, images))

  def work(count: int) -> None:
    for _ in range(count):
      logits = compiled(variables, images)
    jax.block_until_ready(logits)

  return work


def ours(case: Case, *, folded: bool) -> Work:
  import jax
  import jax.numpy as jnp

  import flax_resnet as fr

  model = fr.create_model(
    case.model,
    num_classes=case.num_classes,
    dtype=jnp.bfloat16 if case.bfloat16 else jnp.float32,
  )
  images = normalised(case)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), images[:1]
  )
  if folded:
    model, variables = fr.fold_batch_norm(model, variables)
  return _jitted(model.apply, variables, images)


def flax_example(case: Case) -> Work:
  import flax_example
  import jax
  import jax.numpy as jnp

  dtype = jnp.bfloat16 if case.bfloat16 else jnp.float32
  model = flax_example.ResNet(
    case.sizes,
    case.widths,
    case.bottleneck,
    case.cifar,
    case.num_classes,
    dtype,
  )
  images = normalised(case)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), images[:1]
  )
  return _jitted(model.apply, variables, images.astype(dtype))


def pytorch(
  case: Case, *, compiled: bool = False, folded: bool = False
) -> Work:
  import torch
  from torch.fx.experimental.optimization import fuse
  import torch_resnet

  on_gpu = torch.cuda.is_available()
  device = torch.device("cuda" if on_gpu else "cpu")
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.backends.cudnn.benchmark = True
  model = torch_resnet.ResNet(
    case.sizes, case.widths, case.bottleneck, case.cifar, case.num_classes
  ).eval()
  model = fuse(model) if folded else model
  model = model.to(device, memory_format=torch.channels_last)
  forward = torch.compile(model) if compiled else model
  # Channels last, as it lies there.
  images = torch.from_numpy(normalised(case)).to(device).permute(0, 3, 1, 2)

  def work(count: int) -> None:
    autocast = torch.autocast(
      device.type, torch.bfloat16, enabled=case.bfloat16
    )
    with torch.inference_mode(), autocast:
      for _ in range(count):
        forward(images)
    if on_gpu:
      torch.cuda.synchronize()

  return work


CONTENDERS = {
  "ours": functools.partial(ours, folded=False),
  "ours folded": functools.partial(ours, folded=True),
  "flax example": flax_example,
  "pytorch eager": pytorch,
  "pytorch folded": functools.partial(pytorch, folded=True),
  "torch.compile": functools.partial(pytorch, compiled=True),
}

if __name__ == "__main__":
  compare(__doc__, CONTENDERS, batches=[1, 32])
