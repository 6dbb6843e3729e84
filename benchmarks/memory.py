"""Memory of a compiled training step, as XLA reports it.

    python benchmarks/memory.py                 # ResNet-50, 224 px, batch 8
    python benchmarks/memory.py resnet18-128

Of this package, with and without rematerialisation, and of Flax's example: what
is needed besides the state and the batch (temporary), and how much of the state
is updated in place (donated).
"""

import argparse
import functools

import jax
from train_step import CASES, flax_step, our_step, versions


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("case", nargs="?", default="resnet50-224", choices=CASES)
  case = CASES[parser.parse_args().case]
  print(versions())
  print(f"{case.model} {case.size} px, batch {case.batch}, float32")
  for name, make in (
    ("ours", our_step),
    ("ours, remat", functools.partial(our_step, remat=True)),
    ("flax example", flax_step),
  ):
    step, state, batch = make(case)
    compiled = step.lower(state, batch).compile()
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    analysis = compiled.memory_analysis()
    donated = analysis.alias_size_in_bytes / state
    print(
      f"  {name:13} temporary {analysis.temp_size_in_bytes / 2**20:7.0f} MiB, "
      f"state {state / 2**20:.0f} MiB, of which {donated:.1%} in place"
    )


if __name__ == "__main__":
  main()
