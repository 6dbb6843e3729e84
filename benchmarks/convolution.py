"""Single 3x3 convolutions: XLA's against PyTorch's, in turn.

    pip install torch
    python benchmarks/convolution.py

Prints GFLOP/s (two a multiply-add) of the output, the input gradient and the
weight gradient at the shapes of a CIFAR ResNet with a batch of 128. XLA is
compiled as the trainer compiles.
"""

import functools
import os

from train_step import versions
from turns import take_turns, Work

SHAPES = ((128, 32, 16), (128, 16, 32), (128, 8, 64))
PARTS = ("output", "input gradient", "weight gradient")


def arrays(shape: tuple[int, int, int]):
  """Returns x [b, h, h, c] and a kernel [3, 3, c, c]."""
  import numpy as np

  batch, side, channels = shape
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, side, side, channels)).astype("float32")
  return x, rng.normal(size=(3, 3, channels, channels)).astype("float32")


def xla(shape: tuple[int, int, int], part: str) -> Work:
  import jax

  from flax_resnet.models import operations

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  def run(x, kernel):
    if part == "output":
      return convolve(x, kernel)
    which = part == "weight gradient"
    linear = (
      (lambda k: convolve(x, k)) if which else lambda y: convolve(y, kernel)
    )
    # The gradient of the output has the shape of x.
    return jax.linear_transpose(linear, kernel if which else x)(x)[0]

  options = operations.compiler_options("cpu")
  compiled = jax.jit(run, compiler_options=options)
  x, kernel = jax.device_put(arrays(shape))

  def work(count: int) -> None:
    for _ in range(count):
      result = compiled(x, kernel)
    jax.block_until_ready(result)

  return work


def pytorch(shape: tuple[int, int, int], part: str) -> Work:
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  x, kernel = map(torch.from_numpy, arrays(shape))
  x = x.permute(0, 3, 1, 2)  # Channels last, as it lies there.
  kernel = kernel.permute(3, 2, 0, 1).contiguous(
    memory_format=torch.channels_last
  )
  mask = [part == "input gradient", part == "weight gradient", False]

  def run():
    if part == "output":
      return torch.nn.functional.conv2d(x, kernel, padding=1)
    pair = [1, 1]
    return torch.ops.aten.convolution_backward(
      x, x, kernel, None, pair, pair, pair, False, [0, 0], 1, mask
    )

  def work(count: int) -> None:
    for _ in range(count):
      run()

  return work


def main() -> None:
  print(versions())
  for shape in SHAPES:
    batch, side, channels = shape
    flops = 2 * batch * side**2 * 9 * channels**2
    for part in PARTS:
      makers = {
        "xla": functools.partial(xla, shape, part),
        "pytorch": functools.partial(pytorch, shape, part),
      }
      results = take_turns(makers, rounds=5, seconds=0.5)
      rates = {k: r.median * flops / 1e9 for k, r in results.items()}
      print(
        f"{side:3} px {channels:3} channels  {part:15} "
        f"xla {rates['xla']:4.0f}  pytorch {rates['pytorch']:4.0f} GFLOP/s  "
        f"ratio {results['xla'].ratio(results['pytorch']):.2f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
