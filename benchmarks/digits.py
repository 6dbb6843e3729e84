"""The digits recipe next to classical classifiers, on the same split.

    python benchmarks/digits.py                 # five seeds, about six minutes
    python benchmarks/digits.py --folds         # how the recipe was chosen

--folds uses the training digits alone: it trains on three quarters of them and
evaluates on the fourth, for each quarter in the file's order, so that, as in
the test, the evaluated digits come from other writers.
"""

import argparse
import pathlib
import statistics
import time

from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from flax_resnet.training import load_recipe, train

ROOT = pathlib.Path(__file__).parents[1]
NUM_TRAIN = 1437
FOLDS = {
  "train[360:]": "train[:360]",
  "train[:360]+train[720:]": "train[360:720]",
  "train[:720]+train[1080:]": "train[720:1080]",
  "train[:1080]": "train[1080:]",
}


def baselines() -> dict[str, float]:
  """Returns the test top-1 of two classifiers of scikit-learn."""
  x, y = load_digits(return_X_y=True)
  return {
    name: model.fit(x[:NUM_TRAIN], y[:NUM_TRAIN]).score(
      x[NUM_TRAIN:], y[NUM_TRAIN:]
    )
    for name, model in {
      "SVC, RBF kernel": SVC(C=10, gamma=0.001),
      "3 nearest neighbours": KNeighborsClassifier(3),
    }.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--folds", action="store_true")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument(
    "--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits_seeds")
  )
  flags, overrides = parser.parse_known_args()
  changes = [text.removeprefix("--config.") for text in overrides]
  splits = FOLDS if flags.folds else {"train": "test"}
  results = []
  for fold, (train_split, eval_split) in enumerate(splits.items()):
    for seed in range(1 if flags.folds else flags.seeds):
      config = load_recipe(
        ROOT / "configs/digits.py",
        [
          f"seed={seed}",
          f"data.train_split={train_split}",
          f"data.eval_split={eval_split}",
          *changes,
        ],
      )
      kind = f"fold{fold}" if flags.folds else f"seed{seed}"
      start = time.monotonic()
      summary, _ = train(config, flags.workdir / "_".join([kind, *changes]))
      results.append((summary["val/top1"], time.monotonic() - start))
  scores = [100 * score for score, _ in results]
  if not flags.folds:
    for name, score in baselines().items():
      print(f"{name:22} {100 * score:.2f} %")
  print(
    f"{'configs/digits.py':22} {statistics.mean(scores):.2f} % +- "
    f"{statistics.stdev(scores):.2f} ({', '.join(f'{s:.2f}' for s in scores)}),"
    f" {statistics.mean(seconds for _, seconds in results):.0f} s a run"
  )


if __name__ == "__main__":
  main()
