"""Where the time of a training step goes, by kind of kernel.

    python benchmarks/profile_step.py resnet50-224 --batch 256 --bfloat16

Traces some steps with JAX's profiler, sums what ran on the device by kind, and
lists the longest kernels. On a GPU whose peaks are known it also prints the
share of the roofline: the step's multiply-adds at the peak rate, and its
activations, each written and read once forward and once backward, at the peak
bandwidth.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import tempfile
import time

import jax
from train_step import CASES, ON_GPU, our_step, versions

STEPS = 5
# The first that is found in a kernel's name, upper and lower case alike.
KINDS = {
  "convolution": r"conv|fprop|dgrad|wgrad|implicit|cudnn|xmma|cutlass",
  "matrix product": r"gemm|dot|matmul|cublas",
  "copy and transpose": r"copy|transpose|memcpy|memset|concatenate|pad",
  "all-reduce": r"all-reduce|allreduce|nccl",
  "fused elementwise and sums": r"fusion|reduce|add|multiply|select|broadcast",
}
# bfloat16 FLOP/s without sparsity, bytes/s: NVIDIA's data sheets.
PEAKS = {
  "H200": (989e12, 4.8e12),
  "H100": (989e12, 3.35e12),
  "A100": (312e12, 2.0e12),
}


def kind_of(name: str) -> str:
  return next(
    (kind for kind, wanted in KINDS.items() if re.search(wanted, name.lower())),
    "other",
  )


def kernels(folder: str) -> dict[str, float]:
  """Returns seconds by the name of what ran on the device, in a trace."""
  (path,) = pathlib.Path(folder).glob("**/*.xplane.pb")
  seconds = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    on_cpu = plane.name == "/host:CPU" and jax.default_backend() == "cpu"
    if not (plane.name.startswith("/device:") or on_cpu):
      continue
    for line in plane.lines:
      # Of a GPU its streams; "XLA Ops" and the like say the same again.
      wanted = "XLAEigen" in line.name if on_cpu else "Stream" in line.name
      if not wanted:
        continue
      for event in line.events:
        if not re.search(r"wait|ThreadpoolListener|::", event.name):
          seconds[event.name] += event.duration_ns / 1e9
  return seconds


def roofline(case, images_per_second: float) -> str:
  from flax_resnet import create_model
  from flax_resnet.models.cost import cost

  kind = jax.devices()[0].device_kind
  peak = next((p for name, p in PEAKS.items() if name in kind), None)
  if peak is None:
    return f"no peaks are noted for {kind}: no roofline"
  costs = cost(create_model(case.model), case.size)
  width = 2 if case.bfloat16 else 4
  # Forward, and the gradients of inputs and of weights: three times two.
  compute = 6 * costs.multiply_adds / peak[0]
  memory = 4 * width * costs.activations / peak[1]
  return (
    f"roofline: {images_per_second * compute:.0%} of the peak rate, "
    f"{images_per_second * memory:.0%} of the peak bandwidth"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  every = {**ON_GPU, **CASES}
  parser.add_argument("case", choices=every)
  parser.add_argument("--batch", type=int)
  parser.add_argument("--bfloat16", action="store_true")
  flags = parser.parse_args()
  case = dataclasses.replace(every[flags.case], bfloat16=flags.bfloat16)
  if flags.batch:
    case = dataclasses.replace(case, batch=flags.batch)
  print(versions())
  step, state, batch = our_step(case)
  for _ in range(3):
    state = step(state, batch)
  jax.block_until_ready(state)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      start = time.perf_counter()
      for _ in range(STEPS):
        state = step(state, batch)
      jax.block_until_ready(state)
      taken = (time.perf_counter() - start) / STEPS
    found = kernels(folder)
  total = sum(found.values())
  print(
    f"{case.model} {case.size} px, batch {case.batch}: {1000 * taken:.1f} ms a "
    f"step under the profiler, {1000 * total / STEPS:.1f} ms of kernels"
  )
  by_kind = collections.Counter()
  for name, seconds in found.items():
    by_kind[kind_of(name)] += seconds
  for kind, seconds in by_kind.most_common():
    print(
      f"  {kind:28} {1000 * seconds / STEPS:9.2f} ms {seconds / total:6.1%}"
    )
  print("longest:")
  for name, seconds in collections.Counter(found).most_common(10):
    print(f"  {1000 * seconds / STEPS:9.2f} ms  {name[:90]}")
  print(roofline(case, case.batch / taken))


if __name__ == "__main__":
  main()
