"""A run whose metrics go to Weights & Biases, without a connection.

    pip install wandb
    python examples/log_to_wandb.py

They lie in wandb/ until `wandb sync` uploads them; mode="online" does so during
the run.
"""

import argparse

import wandb

import flax_resnet as fr


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="digits")
  parser.add_argument("--workdir", default="runs/wandb")
  flags, overrides = parser.parse_known_args()
  overrides = [text.removeprefix("--config.") for text in overrides]
  config = fr.load_recipe(flags.config, overrides)
  with wandb.init(
    project="flax_resnet",
    mode="offline",
    config=config.to_dict(),
    # A run that continues is the same one there.
    id=flags.workdir.replace("/", "-"),
    resume="allow",
  ) as run:
    summary, _ = fr.train(
      config, flags.workdir, on_row=lambda row: run.log(row, step=row["step"])
    )
    run.summary.update(summary)


if __name__ == "__main__":
  main()
