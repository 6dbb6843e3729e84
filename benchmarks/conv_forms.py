"""A convolution on CPU in three forms, in turn: what models/cpu.py chooses by.

    python benchmarks/conv_forms.py                    # the rows of docs/cpu.md
    python benchmarks/conv_forms.py 32,32,64,128,3,2

A case is batch, size, channels in and out, size of the kernel, stride. Prints
ms of the output and of both gradients (median and least of the calls): the
plain form computed by Eigen (a compiler option), the form dilated by 2 along
the rows, and the plain form by JAX's default.
"""

import functools
import statistics
import sys
import time

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

CASES = (
  "128,16,32,32,3,1",
  "32,32,64,64,3,1",
  "32,32,64,128,3,2",
  "32,128,3,64,7,2",
  "8,28,512,128,1,1",
)
CALLS = 10
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
FORMS = {"Eigen": (1, EIGEN), "dilated": (2, {}), "default": (1, {})}


def convolve(x, kernel, layout, *, times, stride):
  pad = (kernel.shape[layout[1].index("H")] - 1) // 2
  return lax.conv_general_dilated(
    x,
    kernel,
    (times * stride, stride),
    ((times * pad, times * pad), (pad, pad)),
    lhs_dilation=(times, 1),
    rhs_dilation=(times, 1),
    dimension_numbers=layout,
  )


def output(conv, x, kernel, dy):
  del dy
  return conv(x, kernel, ("NHWC", "HWIO", "NHWC"))


def image_gradient(conv, x, kernel, dy):
  swapped = kernel.transpose(0, 1, 3, 2)

  def forward(x):
    return conv(x, swapped, ("NHWC", "HWOI", "NHWC"))

  return jax.linear_transpose(forward, x)(dy)[0]


def kernel_gradient(conv, x, kernel, dy):
  def forward(kernel):
    x_first, k_first = x.transpose(3, 1, 2, 0), kernel.transpose(2, 0, 1, 3)
    return conv(x_first, k_first, ("CHWN", "IHWO", "HWNC")).transpose(
      2, 0, 1, 3
    )

  return jax.linear_transpose(forward, kernel)(dy)[0]


def main() -> None:
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  for case in sys.argv[1:] or CASES:
    batch, size, inputs, features, window, stride = map(int, case.split(","))
    arrays = (
      draw(batch, size, size, inputs),
      draw(window, window, inputs, features),
      draw(batch, -(-size // stride), -(-size // stride), features),
    )
    print(case)
    for what in (output, image_gradient, kernel_gradient):
      programs = {}
      for name, (times, options) in FORMS.items():
        conv = functools.partial(convolve, times=times, stride=stride)
        jitted = jax.jit(functools.partial(what, conv))
        programs[name] = jitted.lower(*arrays).compile(options)
        jax.block_until_ready(programs[name](*arrays))
      milliseconds = {name: [] for name in programs}
      for _ in range(CALLS):
        for name, program in programs.items():
          start = time.perf_counter()
          jax.block_until_ready(program(*arrays))
          milliseconds[name].append(1e3 * (time.perf_counter() - start))
      row = "  ".join(
        f"{name} {statistics.median(values):.1f} ({min(values):.1f})"
        for name, values in milliseconds.items()
      )
      print(f"  {what.__name__:16} {row}")


if __name__ == "__main__":
  main()
