"""Several steps by one call, over a data set on the device: what it gains.

    python benchmarks/steps_per_call.py

Steps/s of the loop's step on the digits, with the batches that it takes: by
the host, one step a call, and from the device, several. In turn; the ratio is
to one step a call. First the network of `configs/digits.py`, then a much
smaller one, then that one with a batch of 8.
"""

import argparse
import functools
import pathlib

from train_step import versions
from turns import take_turns, Work

RECIPE = pathlib.Path(__file__).parents[1] / "configs/digits.py"
THIN = "model.stage_features=(4,8,8)"
NETS = {
  "digits": [],
  "digits, thin": [THIN],
  "digits, thin, batch 8": [THIN, "batch_size=8"],
}
COUNTS = (1, 5, 20, 100)
TURN = 100  # Steps; what every count divides.


def trainer(overrides: list[str], steps_per_call: int) -> Work:
  import jax

  from flax_resnet import sharding
  from flax_resnet.training import load_recipe
  from flax_resnet.training.setup import set_up

  never = 1_000_000
  config = load_recipe(
    RECIPE,
    [
      *overrides,
      f"steps_per_call={steps_per_call}",
      *(f"{key}={never}" for key in ("num_steps", "log_every", "eval_every")),
      f"checkpoint_every={never}",
    ],
  )
  run = set_up(config.to_dict(), sharding.make_mesh(jax.devices()[:1]))
  state = sharding.replicate(run.drawn_state(), run.mesh)
  inputs = run.train_inputs(0)

  def work(count: int) -> None:
    nonlocal state
    for _ in range(count * TURN // steps_per_call):
      state = run.train_step(state, next(inputs)[0])
    jax.block_until_ready(state)

  return work


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=2)
  flags = parser.parse_args()
  print(versions())
  for name, overrides in NETS.items():
    makers = {
      str(count): functools.partial(trainer, overrides, count)
      for count in COUNTS
    }
    results = take_turns(makers, flags.rounds, flags.seconds)
    print(name)
    for count, result in results.items():
      rates = [TURN * rate for rate in result.rates]
      print(
        f"  {count:>3} a call {TURN * result.median:7.0f} steps/s "
        f"({min(rates):.0f} to {max(rates):.0f})  "
        f"{result.ratio(results['1']):.2f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
