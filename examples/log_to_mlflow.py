"""A run whose metrics go to MLflow, into a file on this machine.

pip install mlflow
python examples/log_to_mlflow.py
mlflow ui --backend-store-uri sqlite:///mlflow.db

--store takes the address of a server as well.
"""

import argparse

import mlflow

import flax_resnet as fr


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="digits")
  parser.add_argument("--workdir", default="runs/mlflow")
  parser.add_argument("--store", default="sqlite:///mlflow.db")
  flags, overrides = parser.parse_known_args()
  overrides = [text.removeprefix("--config.") for text in overrides]
  config = fr.load_recipe(flags.config, overrides)
  mlflow.set_tracking_uri(flags.store)
  mlflow.set_experiment("flax_resnet")

  def log(row: dict) -> None:
    mlflow.log_metrics(
      {key: value for key, value in row.items() if key != "step"}, row["step"]
    )

  with mlflow.start_run(run_name=flags.workdir):
    for section, values in config.to_dict().items():
      keys = values if isinstance(values, dict) else {"": values}
      names = (f"{section}.{key}".rstrip(".") for key in keys)
      mlflow.log_params(dict(zip(names, keys.values(), strict=True)))
    fr.train(config, flags.workdir, on_row=log)


if __name__ == "__main__":
  main()
