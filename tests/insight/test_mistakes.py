"""Mistakes are counted, the surest are kept, each with its record."""

import numpy as np
from PIL import Image
import pytest

from flax_resnet.insight.mistakes import find_mistakes
from flax_resnet.insight.study import TrainedRun
from flax_resnet.predictor import Predictor
from flax_resnet.training import load_recipe
from flax_resnet.training.setup import set_up
from flax_resnet.weights.preprocessing import Preprocessing
from tests.recipes import ROOT


def test_mistakes_are_counted_and_the_surest_kept():
  """Images hold the prediction and how sure it is."""
  rng = np.random.default_rng(0)
  images = np.zeros((10, 1, 2, 1), np.uint8)
  images[..., 0, :] = rng.integers(0, 3, (10, 1, 1))
  images[..., 1, :] = rng.permutation(np.arange(50, 100, 5))[:, None, None]
  labels = rng.integers(0, 3, 10).astype(np.int32)

  def predict(pixels):
    sure = pixels[:, 0, 1, 0] / 100
    rest = np.repeat((1 - sure)[:, None] / 2, 3, 1)
    rest[np.arange(len(pixels)), pixels[:, 0, 0, 0]] = sure
    return rest

  batches = [
    {
      "image": images[first : first + 4],
      "label": labels[first : first + 4],
      "mask": np.arange(first, first + len(images[first : first + 4])) < 9,
    }
    for first in (0, 4, 8)
  ]
  found = find_mistakes(predict, batches, 3, keep=2)
  predicted = images[:9, 0, 0, 0]
  assert found.confusion.sum() == 9  # The last one is not real.
  for i in range(3):
    for j in range(3):
      assert (
        found.confusion[i, j] == ((labels[:9] == i) & (predicted == j)).sum()
      )
  wrong = np.flatnonzero(labels[:9] != predicted)
  surest = sorted(wrong, key=lambda n: -int(images[n, 0, 1, 0]))[:2]
  assert [mistake.index for mistake in found.most_confident] == surest
  every = find_mistakes(predict, batches, 3)
  assert {mistake.index for mistake in every.most_confident} == set(wrong)
  assert max(wrong) > 3  # Not in the first batch.
  assert [m.probability for m in found.most_confident] == pytest.approx(
    list(images[surest, 0, 1, 0] / 100)
  )


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_skipped_image_does_not_shift_the_records_after_it(mesh, tmp_path):
  """A broken image leaves a hole in the middle of the evaluation split."""
  rng = np.random.default_rng(0)
  files = [
    tmp_path / split / label / f"{number}.png"
    for split in ("train", "val")
    for label in ("a", "b")
    for number in range(7)
  ]
  for file in files:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(file)
  records = files[14:]
  records[2].write_bytes(b"no image")
  values = {
    "data.root": str(tmp_path),
    "data.train_split": "train",
    "data.eval_split": "val",
    "data.on_error": "skip",
    "data.image_size": 8,
    "model.name": "cifar_resnet8",
    "model.num_classes": 2,
    "model.stage_features": (4, 4, 4),
    "batch_size": 4,
    "eval_batch_size": 4,
  }
  overrides = [f"{key}={value}" for key, value in values.items()]
  config = load_recipe(ROOT / "configs" / "folder.py", overrides).to_dict()
  run = set_up(config, mesh)
  variables = run.drawn_state().variables
  found = TrainedRun(run, 0, before=variables, after=variables).mistakes()

  # Image by image, without batches.
  sound = [index for index in range(14) if index != 2]
  predictor = Predictor(
    run.model, variables, Preprocessing.of_run(config), ("a", "b")
  )
  probabilities = predictor.predict([records[index] for index in sound])
  wrong = {
    index: each.argmax()
    for index, each in zip(sound, probabilities, strict=True)
    if records[index].parent.name != "ab"[each.argmax()]
  }
  assert max(wrong) > 3  # Not in the batch with the hole.
  assert wrong == {m.index: m.predicted for m in found.most_confident}
  assert found.confusion.sum() == 13
