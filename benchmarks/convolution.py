"""Convolutions alone: XLA's against PyTorch's, in turn.

    pip install torch
    python benchmarks/convolution.py                  # single ones
    python benchmarks/convolution.py resnet20-32      # all those of a step

The first prints GFLOP/s (two a multiply-add) of the output, the input gradient
and the weight gradient of 3x3 convolutions at the shapes of a CIFAR ResNet with
a batch of 128. The second prints how long all convolutions of a training step
take when nothing else is computed, beside the whole steps: where the first of
these is no shorter than PyTorch's whole step, no other work can make up for it.
XLA is compiled as the trainer compiles.
"""

import argparse
import collections
import functools
import os
from typing import Any

from train_step import Case, CASES, ours, versions
from train_step import pytorch as pytorch_step
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


def convolutions_of(case: Case) -> collections.Counter:
  """Returns how often each (x shape, kernel shape, strides, pad) occurs."""
  import jax
  import jax.numpy as jnp

  from flax_resnet import create_model
  from flax_resnet.models.cost import inner

  found = collections.Counter()

  def collect(jaxpr) -> None:
    for equation in jaxpr.eqns:
      params: dict[str, Any] = equation.params
      if equation.primitive.name == "conv_general_dilated":
        shapes = (v.aval.shape for v in equation.invars)
        found[*shapes, params["window_strides"], params["padding"]] += 1
      elif equation.primitive.name == "cond":
        collect(params["branches"][-1].jaxpr)  # Of most platforms.
      else:
        for each in inner(params):
          collect(each)

  model = create_model(case.model, num_classes=case.num_classes)
  images = jnp.zeros((case.batch, case.size, case.size, 3))
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )
  collect(
    jax.make_jaxpr(functools.partial(model.apply, train=False))(
      variables, images
    ).jaxpr
  )
  return found


def xla_convolutions(case: Case) -> Work:
  import jax
  import numpy as np

  from flax_resnet.models import operations

  rng = np.random.default_rng(0)
  options = operations.compiler_options("cpu")
  calls = []
  for (x, kernel, strides, pad), times in convolutions_of(case).items():
    convolve = functools.partial(
      operations.conv,
      strides=strides,
      padding=pad,
      rhs_dilation=(1, 1),
      feature_group_count=1,
    )
    arguments = [rng.normal(size=s).astype("float32") for s in (x, kernel)]
    dy = rng.normal(size=jax.eval_shape(convolve, *arguments).shape)

    def run(x, kernel, dy, convolve=convolve):
      y, pull_back = jax.vjp(convolve, x, kernel)
      gradients = pull_back(dy)
      # The images need no gradient.
      return y, gradients[1:] if x.shape[-1] == 3 else gradients

    arrays = jax.device_put((*arguments, dy.astype("float32")))
    calls.append((jax.jit(run, compiler_options=options), arrays, times))

  def work(count: int) -> None:
    for _ in range(count):
      for call, arrays, times in calls:
        for _ in range(times):
          jax.block_until_ready(call(*arrays))

  return work


def pytorch_convolutions(case: Case) -> Work:
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  last = torch.channels_last
  calls = []
  for (x, kernel, strides, pad), times in convolutions_of(case).items():
    b, h, w, i = x
    m, n, _, f = kernel
    image = torch.randn(b, i, h, w).contiguous(memory_format=last)
    weight = torch.randn(f, i, m, n).contiguous(memory_format=last)
    pads = [pair[0] for pair in pad]
    y = torch.nn.functional.conv2d(image, weight, None, strides, pads)
    calls.append((image, weight, y, strides, pads, times))

  def work(count: int) -> None:
    for _ in range(count):
      for image, weight, dy, strides, pads, times in calls:
        for _ in range(times):
          torch.nn.functional.conv2d(image, weight, None, strides, pads)
          torch.ops.aten.convolution_backward(
            *(dy, image, weight, None, strides, pads, [1, 1], False),
            *([0, 0], 1, [image.shape[1] != 3, True, False]),
          )

  return work


WHOLE = {
  "xla, convolutions alone": xla_convolutions,
  "xla, whole step": ours,
  "pytorch, convolutions alone": pytorch_convolutions,
  "pytorch, whole step": functools.partial(pytorch_step, compiled=False),
}


def compare_steps(name: str) -> None:
  makers = {
    who: functools.partial(make, CASES[name]) for who, make in WHOLE.items()
  }
  print(name)
  for who, result in take_turns(makers, rounds=5, seconds=3).items():
    times = [1000 / rate for rate in result.rates]
    print(
      f"  {who:28} {1000 / result.median:6.0f} ms "
      f"({min(times):.0f} to {max(times):.0f})",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("cases", nargs="*", help=", ".join(CASES))
  cases = parser.parse_args().cases
  print(versions())
  if cases:
    for name in cases:
      compare_steps(name)
  else:
    compare_single()


def compare_single() -> None:
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
