"""What an analysis of a split costs beside its evaluation.

    python benchmarks/analysis.py --data-dir DIR    # CIFAR-10 lies there

Prints processor seconds of both on the 10,000 test images, by the ResNet-20 in
the package, in turn: loss and accuracy as `evaluate` has them; confusion,
calibration, and the most and least confident examples as `report` has them.
Then, by a thin network, the peak of the resident memory while the 50,000
training images are analysed, after the first 5,000 and after all.
"""

import argparse
from collections.abc import Callable, Iterator
import itertools
import pathlib
import resource
import statistics
import time
from typing import Any

import jax

import flax_resnet as fr
from flax_resnet import sharding
from flax_resnet.insight.mistakes import find_mistakes
from flax_resnet.models.variables import initial_variables
from flax_resnet.training.setup import Run, set_up

RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "cifar10_resnet20.py"


def _run(data_dir: str, *changes: str) -> Run:
  changes = (f"data.data_dir={data_dir}", "data.in_memory=False", *changes)
  config = fr.load_recipe(RECIPE, list(changes)).to_dict()
  return set_up(config, sharding.make_mesh(jax.local_devices()[:1]))


def _analysis(run: Run, variables: Any) -> Callable[[Iterator[Any]], Any]:
  """Returns what `report` makes of batches, compiled once."""

  @jax.jit
  def predict(variables, images):
    images = run.normalize(images)
    return jax.nn.softmax(run.model.apply(variables, images, train=False))

  def analyse(batches):
    return find_mistakes(
      lambda images: predict(variables, images), batches, 10, keep=10
    )

  return analyse


def _peak() -> float:
  """Returns the largest resident memory of this process, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()

  run = _run(args.data_dir, "model.num_classes=10")
  _, variables = fr.from_pretrained("cifar_resnet20.cifar10")
  analyse = _analysis(run, variables)
  works = {
    "evaluate": lambda batches: run.evaluate({"": variables}, batches),
    "analyse": analyse,
  }
  for work in works.values():  # Compiled by a batch.
    work(itertools.islice(run.eval_batches(), 1))
  ratios = []
  for _ in range(args.rounds):
    seconds = {}
    for name, work in works.items():
      start = time.process_time()
      work(run.eval_batches())
      seconds[name] = time.process_time() - start
    ratios.append(seconds["analyse"] / seconds["evaluate"])
    print({k: round(v, 2) for k, v in seconds.items()}, f"{ratios[-1]:.3f}")
  print(f"median of the ratios: {statistics.median(ratios):.3f}")

  thin = _run(
    args.data_dir,
    "data.eval_split=train",
    "model.name=cifar_resnet8",
    "model.stage_features=(4,4,4)",
  )
  variables = initial_variables(thin.model, jax.random.key(0), (32, 32, 3))
  analyse, batches = _analysis(thin, variables), thin.eval_batches()
  peaks = [_peak()]
  analyse(itertools.islice(batches, 10))
  peaks.append(_peak())
  analyse(batches)
  peaks.append(_peak())
  print("peak of resident memory before, after 5,000 and 50,000 images, MiB:")
  print([round(each) for each in peaks])


if __name__ == "__main__":
  main()
