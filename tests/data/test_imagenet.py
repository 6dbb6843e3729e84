"""ImageNet's classes in other test sets, and the labels of ReaL."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import __main__
from flax_resnet.data import imagenet
from flax_resnet.errors import InputError
from flax_resnet.models.variables import initial_variables
from flax_resnet.predictor import Predictor
from flax_resnet.weights import load_pretrained
from tests.recipes import ROOT

FIELDS = {
  "stage_sizes": (1, 1, 1, 1),
  "stage_features": (4, 4, 4, 4),
  "num_classes": 1000,
}


def test_there_are_1000_classes_in_the_order_of_their_labels():
  names = list(imagenet.classes())
  assert len(names) == 1000
  assert names == sorted(names)  # As folders are.
  assert imagenet.classes()["n01440764"] == 0  # Tench.
  assert imagenet.classes()["n15075141"] == 999  # Toilet tissue.


def test_names_of_classes_are_labels():
  names = ["n15075141", "n01440764"]
  assert imagenet.labels_of(names).tolist() == [999, 0]
  assert imagenet.labels_of(["0", "1", "10", "2"]).tolist() == [0, 1, 10, 2]
  assert imagenet.labels_of(["n01440764", "tulip"]) is None


@pytest.mark.deep
def test_classes_are_those_that_timm_has():
  """Of ImageNet, and of the 200 of ImageNet-A and -R."""
  spec = importlib.util.find_spec("timm")
  if spec is None or spec.origin is None:
    pytest.skip("timm is not installed")
  folder = pathlib.Path(spec.origin).parent / "data" / "_info"

  def words(name):
    return (folder / f"imagenet_{name}.txt").read_text().split()

  assert list(imagenet.classes()) == words("synsets")
  for kind in ("a", "r"):
    labels = imagenet.labels_of(words(f"{kind}_synsets"))
    assert labels.tolist() == list(map(int, words(f"{kind}_indices")))
    assert len(labels) == 200


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A file of a thin ResNet-18 of 1,000 classes."""
  model = fr.create_model("resnet18", **FIELDS)
  variables = initial_variables(model, jax.random.key(5), (32, 32, 3))
  # Not all images go to one class.
  head = variables["params"]["head"]
  head["kernel"] = 40 * head["kernel"]
  path = tmp_path_factory.mktemp("weights") / "imagenet"
  fr.save_pretrained(path, model, variables)
  return path


def write_images(folder, classes, named="{}.png"):
  """Writes four images of each class."""
  rng = np.random.default_rng(0)
  paths = []
  for name in classes:
    for _ in range(4):
      path = folder / name / named.format(len(paths) + 1)
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
      Image.fromarray(pixels // 4 + 48 * len(paths[:4])).save(path)
      paths.append(path)
  return paths


@pytest.fixture
def evaluate(call_main, weights, tmp_path):
  """Evaluates the weights on the folder `images`; returns the JSON object."""

  def evaluate(*flags):
    code, out, err = call_main(
      __main__.main,
      *("evaluate", "--weights", weights, "--json", *flags),
      *("--config", ROOT / "configs" / "folder.py"),
      *(f"--config.data.root={tmp_path / 'images'}",),
      "--config.data.eval_split=train",
    )
    assert code == 0, err
    return json.loads(out)

  return evaluate


def logits_of(weights, paths):
  """Returns logarithms of probabilities, [n, 1000]."""
  predictor = Predictor.of(load_pretrained(weights))
  return np.log(np.stack(list(predictor.predict(paths))))


@pytest.mark.parametrize(
  "classes",
  [("n01440764", "n02085620", "n15075141"), ("0", "10", "2", "999")],
  ids=["WordNet", "labels"],
)
def test_only_the_classes_of_the_folder_are_asked_for(
  evaluate, weights, tmp_path, classes
):
  paths = write_images(tmp_path / "images", classes)
  labels = imagenet.labels_of(sorted(classes))
  among = logits_of(weights, paths)[:, labels]
  wanted = among.argmax(1) == np.repeat(range(len(classes)), 4)
  found = evaluate()
  assert found["val/count"] == len(paths)
  assert found["val/top1"] == pytest.approx(wanted.mean())


def test_real_labels_may_be_any_of_several(evaluate, weights, tmp_path):
  """Images without any are left out."""
  paths = write_images(
    tmp_path / "images",
    ["n01440764", "n02085620"],
    "ILSVRC2012_val_{:08}.png",
  )
  best = logits_of(weights, paths).argmax(1).tolist()
  real = [[best[0], 3], [(best[1] + 1) % 1000], [], *([b] for b in best[3:])]
  (tmp_path / "real.json").write_text(json.dumps(real))
  found = evaluate("--real-labels", tmp_path / "real.json")
  assert found["val/count"] == 7
  assert found["val/real_top1"] == pytest.approx(6 / 7)


def test_other_files_of_real_labels_are_refused(tmp_path):
  path = tmp_path / "real.json"
  with pytest.raises(InputError, match="is not real.json, a list of the"):
    imagenet.read_real_labels(path, [])
  path.write_text("[[1], [2]]")
  with pytest.raises(InputError, match="cat.png is not one of the 2 images"):
    imagenet.read_real_labels(path, ["cat.png"])
  with pytest.raises(InputError, match="00000003.JPEG is not one of the 2"):
    imagenet.read_real_labels(path, ["a/ILSVRC2012_val_00000003.JPEG"])
  names = ["a/ILSVRC2012_val_00000002.JPEG"]
  assert imagenet.read_real_labels(path, names) == [frozenset({2})]
