"""Several labels an image: scores against scikit-learn, whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics as sklearn

from flax_resnet import __main__ as command
from flax_resnet import storage
from flax_resnet.augment import make_augment
from flax_resnet.errors import InputError
from flax_resnet.predictor import Predictor
from flax_resnet.training import multilabel, train
from flax_resnet.training.losses import make_loss
from flax_resnet.weights import load_pretrained
from tests import recipes, runs

CLASSES = ("red", "green", "blue", "dark")


def draw_split(count, seed):
  """Returns images whose channels say which labels they have."""
  rng = np.random.default_rng(seed)
  labels = rng.random((count, 4)) < [0.5, 0.3, 0.6, 0.4]
  level = np.where(labels[:, None, None, :3], 200, 80)
  level = level * np.where(labels[:, None, None, 3:], 0.4, 1)
  noise = rng.integers(-40, 40, (count, 8, 8, 3))
  return np.clip(level + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
  """The path of a .npz file of images with up to four labels."""
  path = tmp_path_factory.mktemp("arrays") / "labels.npz"
  values = {}
  for split, count, seed in (("train", 96, 0), ("test", 50, 1)):
    values[f"{split}_images"], values[f"{split}_labels"] = draw_split(
      count, seed
    )
  np.savez(path, class_names=np.array(CLASSES), **values)
  return path


@pytest.fixture(scope="module")
def config(data_dir, arrays):
  """Twelve steps on them, with all that mixes, smooths and weighs labels."""
  return recipes.changed(
    recipes.tiniest(data_dir),
    {
      "batch_size": 32,
      "eval_batch_size": 16,
      "num_steps": 12,
      "log_every": 3,
      "eval_every": 6,
      "checkpoint_every": 6,
      "model.num_classes": 4,
      "data.name": "npz",
      "data.root": str(arrays),
      "data.train_split": "train",
      "data.eval_split": "test",
      "augment.mean": (0.5,) * 3,
      "augment.std": (0.25,) * 3,
      "augment.mixup": 0.2,
      "loss.label_smoothing": 0.1,
      "loss.name": "binary_cross_entropy",
      "loss.focal_gamma": 1.0,
      "loss.class_weights": "balanced",
      "ema_decay": 0.5,
    },
  )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  train(config, workdir, runs.mesh_of(1))
  return workdir


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_scikit_learn(ties):
  rng = np.random.default_rng(0)
  labels = (rng.random((300, 7)) < rng.random(7)).astype(np.uint8)
  scores = rng.normal(size=labels.shape).astype(np.float32) + labels
  if ties:
    scores = np.round(scores)
  found = multilabel.average_precision(scores, labels)
  wanted = sklearn.average_precision_score(labels, scores, average=None)
  np.testing.assert_allclose(found, wanted, rtol=1e-12)
  np.testing.assert_allclose(
    multilabel.mean_average_precision(scores, labels),
    sklearn.average_precision_score(labels, scores, average="macro"),
    rtol=1e-12,
  )


def test_a_class_that_no_image_has_is_left_out_of_the_mean():
  labels = np.array([[1, 0], [0, 0]], np.uint8)
  scores = np.array([[0.1, 0.9], [0.7, 0.8]], np.float32)
  found = multilabel.average_precision(scores, labels)
  np.testing.assert_array_equal(found, [0.5, np.nan])
  assert multilabel.mean_average_precision(scores, labels) == 0.5
  assert np.isnan(multilabel.mean_average_precision(scores, 0 * labels))
  scores[1, 0] = np.nan
  assert np.isnan(multilabel.mean_average_precision(scores, labels))


def test_batches_have_every_label_of_an_image(config, arrays):
  run = runs.make_run(config)
  batch = next(run.train_batches(0))
  assert (batch["label"].dtype, batch["label"].shape) == (np.uint8, (32, 4))
  file = np.load(arrays)
  whole = np.concatenate([b["label"][b["mask"]] for b in run.eval_batches()])
  np.testing.assert_array_equal(whole, file["test_labels"])


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_image_once(config, devices):
  """On any number of devices, in batches that they cannot share evenly."""
  run = runs.make_run(config, {"eval_batch_size": 21}, devices)
  variables = runs.first_state(run).variables
  (found,) = run.evaluate({"": variables}, run.eval_batches()).values()
  source = run.dataset.eval.source
  logits = run.model.apply(
    variables, run.normalize(jnp.asarray(source.images)), train=False
  )
  logits, labels = np.asarray(logits, np.float64), source.labels
  each = np.logaddexp(0, logits) - labels * logits
  wanted = sklearn.average_precision_score(labels, logits)
  assert found["val/count"] == 50
  np.testing.assert_allclose(found["val/loss"], each.mean(), rtol=1e-5)
  np.testing.assert_allclose(found["val/map"], wanted, rtol=1e-6)


def test_a_run_learns_and_keeps_the_best_by_map(whole):
  rows = runs.rows_of(whole)
  evaluated = [row for row in rows if "val/map" in row]
  assert [row["step"] for row in evaluated] == [6, 12]
  assert evaluated[-1].keys() == {
    *("step", "epoch", "train/loss", "learning_rate"),
    *("val/loss", "val/map", "val/count", "val/raw_loss", "val/raw_map"),
  }
  summary = json.loads((whole / "summary.json").read_text())
  best = max(evaluated, key=lambda row: row["val/map"])
  assert summary["best/val/map"] == best["val/map"]
  assert summary["best/step"] == best["step"]
  assert storage.score(best) == best["val/map"]


def test_a_killed_run_ends_with_the_same_bits(
  whole, config, tmp_path, mesh, monkeypatch
):
  for stop in (2, 7):
    runs.train_to(config, tmp_path, mesh, stop, monkeypatch)
  train(config, tmp_path, mesh)
  runs.assert_same_bits(runs.saved_state(whole), runs.saved_state(tmp_path))
  assert runs.rows_of(whole) == runs.rows_of(tmp_path)


def test_labels_are_mixed_and_smoothed_class_by_class():
  """As Keras smooths them: towards a half, and not towards 1 / classes."""
  options = {"name": "binary_cross_entropy", "multi_label": True}
  smooth, plain = (
    make_loss(label_smoothing=0.1, **options),
    make_loss(**options),
  )
  augment, _ = make_augment(
    mean=(0.0,),
    std=(1.0,),
    mixup=0.5,
    channels=1,
    num_classes=4,
    batch_size=2,
  )
  labels = jnp.asarray([[1, 1, 0, 0], [0, 1, 0, 1]], jnp.uint8)
  images = jnp.asarray([[[[0]]], [[[255]]]], jnp.uint8)
  mixed, targets = augment(jax.random.key(0), images, labels)
  share = mixed[0, 0, 0, 0]
  assert 0.01 < share < 0.99
  wanted = [[1 - share, 1, 0, share], [share, 1, 0, 1 - share]]
  np.testing.assert_allclose(targets, wanted, rtol=1e-6)
  logits = jax.random.normal(jax.random.key(1), (2, 4))
  np.testing.assert_allclose(
    smooth(logits, targets), plain(logits, 0.9 * targets + 0.05), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    (
      {
        "loss.name": "cross_entropy",
        "loss.focal_gamma": 0.0,
        "loss.class_weights": None,
      },
      "config.loss: name is cross_entropy, of which an image has one label, "
      "and the data have several: use binary_cross_entropy",
    ),
    (
      {"data.balanced_sampling": True},
      "config.data: balanced_sampling is True and images have several labels, "
      "so that they are of no one class: set it to False",
    ),
    (
      {"loss.class_weights": (1.0, 2.0)},
      "config.loss.class_weights has 2 numbers and the data set 4 classes: "
      "give one number a class",
    ),
  ],
)
def test_what_several_labels_do_not_go_with(config, values, sentence):
  with pytest.raises(InputError) as error:
    runs.make_run(config, values)
  assert str(error.value) == sentence


def test_a_run_is_evaluated_class_by_class(whole, call_main):
  rows = runs.rows_of(whole)
  code, out, err = call_main(
    command.main, "evaluate", "--workdir", whole, "--json"
  )
  assert (code, err) == (0, "")
  found = json.loads(out)
  assert found["val/count"] == 50
  assert found["val/map"] == pytest.approx(rows[-1]["val/map"])
  assert found["val/ap"].keys() == set(CLASSES)
  assert np.mean([*found["val/ap"].values()]) == pytest.approx(found["val/map"])
  code, out, _ = call_main(command.main, "evaluate", "--workdir", whole)
  assert f"map {found['val/map']:.2%}  loss" in out


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    ((), lambda p: p >= 0.5),
    (("--threshold", "0.2"), lambda p: p >= 0.2),
    (("--top", "4"), lambda p: p >= 0),
  ],
)
def test_every_class_above_a_threshold_is_predicted(
  whole, call_main, tmp_path, flags, wanted
):
  images, _ = draw_split(3, seed=5)
  for number, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / f"{number}.png")
  predictor = Predictor.of(load_pretrained(whole))
  probabilities = np.stack([*predictor.predict(sorted(tmp_path.iterdir()))])
  assert not np.allclose(probabilities.sum(-1), 1)
  code, out, _ = call_main(
    command.main, "predict", "--workdir", whole, "--json", *flags, tmp_path
  )
  assert code == 0
  for line, row in zip(out.splitlines(), probabilities, strict=True):
    found = {c["label"]: c["probability"] for c in json.loads(line)["classes"]}
    assert found.keys() == set(np.flatnonzero(wanted(row)))
    for label, probability in found.items():
      assert probability == pytest.approx(row[label])


def test_maps_change_no_probability(whole, call_main, tmp_path):
  """Neither do folders for the hub, which say that there are several labels."""
  images, _ = draw_split(2, seed=5)
  for number, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / f"{number}.png")
  files = sorted(tmp_path.iterdir())

  def predicted(*flags):
    code, out, _ = call_main(command.main, "predict", "--json", *flags, *files)
    assert code == 0
    return [
      {c["class"]: c["probability"] for c in json.loads(line)["classes"]}
      for line in out.splitlines()
    ]

  found = predicted("--workdir", whole)
  assert [len(each) for each in found] != [4, 4]  # Not by softmax's first five.
  cams = predicted("--workdir", whole, "--cam", tmp_path / "cams")
  hub = tmp_path / "hub"
  assert call_main(command.main, "convert", whole, hub, "--hub")[0] == 0
  for others in (cams, predicted("--weights", hub)):
    for one, other in zip(found, others, strict=True):
      assert one == pytest.approx(other, abs=1e-6)
  rows = runs.rows_of(whole)
  assert (
    f"mean average precision {rows[-1]['val/map']:.2%} of 50 images"
    in (hub / "README.md").read_text()
  )


def test_an_image_may_have_no_class(whole, call_main, tmp_path):
  Image.fromarray(draw_split(1, seed=5)[0][0]).save(tmp_path / "0.png")
  code, out, _ = call_main(
    *(command.main, "predict", "--workdir", whole, "--threshold", "1"),
    tmp_path,
  )
  assert (code, out) == (0, f"{tmp_path}/0.png\n  none of 100.00% or more\n")


def test_a_page_is_for_one_label_an_image(whole, call_main):
  code, _, err = call_main(command.main, "report", "--workdir", whole)
  assert code == 2
  assert "is a run on images of several labels, which report cannot show" in err
  assert not (whole / "report.html").exists()


def test_a_threshold_out_of_range_is_refused(whole, call_main, tmp_path):
  code, _, err = call_main(
    command.main, "predict", "--workdir", whole, "--threshold", "2", tmp_path
  )
  assert (code, err) == (2, "error: --threshold is 2.0: use 0 to 1\n")
