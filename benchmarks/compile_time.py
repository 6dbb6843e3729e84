"""How long a training step takes to trace and to compile.

    python benchmarks/compile_time.py

With `scan`, the equal blocks of a stage are one loop. The step time shows what
that costs on this platform.
"""

import time

import jax
from train_step import Case, flax_step, our_step, resnet, versions

NETS = {
  "cifar_resnet20": Case("cifar_resnet20", (3, 3, 3), 32, 32, cifar=True),
  "cifar_resnet110": Case("cifar_resnet110", (18,) * 3, 32, 32, cifar=True),
  "cifar_resnet1202": Case("cifar_resnet1202", (200,) * 3, 32, 2, cifar=True),
  "resnet50": resnet(50, (3, 4, 6, 3), 64, 8),
}


def measure(name: str, who: str, make, **options) -> None:
  step, state, batch = make(NETS[name], **options)
  start = time.perf_counter()
  lowered = step.lower(state, batch)
  traced = time.perf_counter()
  compiled = lowered.compile()
  end = time.perf_counter()
  out = compiled(state, batch)
  for _ in range(3):
    jax.block_until_ready(out)
    again = time.perf_counter()
    out = compiled(out[0] if isinstance(out, tuple) else out, batch)
  jax.block_until_ready(out)
  print(
    f"{name:18} {who:13} trace {traced - start:5.1f} s  "
    f"compile {end - traced:5.1f} s  "
    f"step {1000 * (time.perf_counter() - again):6.0f} ms",
    flush=True,
  )


def main() -> None:
  print(versions())
  for name in NETS:
    if name != "cifar_resnet1202":  # Unrolled, it compiles for minutes.
      measure(name, "ours", our_step)
      measure(name, "flax example", flax_step)
    measure(name, "ours, scan", our_step, scan=True)


if __name__ == "__main__":
  main()
