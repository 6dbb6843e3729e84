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
from flax_resnet.data import crops, imagenet
from flax_resnet.errors import InputError
from flax_resnet.models.variables import initial_variables
from flax_resnet.predictor import Predictor
from flax_resnet.weights import load_pretrained
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from tests.data.images import encode
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
  assert list(imagenet.classes()) == info("synsets")
  for kind in ("a", "r"):
    labels = imagenet.labels_of(info(f"{kind}_synsets"))
    assert labels.tolist() == list(map(int, info(f"{kind}_indices")))
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
  """Evaluates weights on the folder `images`; returns the JSON object."""

  def evaluate(*flags, weights=weights):
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


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder of a ResNet-18 on 32 pixels, which timm opens, too."""
  model = fr.create_model("resnet18")
  variables = initial_variables(model, jax.random.key(5), (32, 32, 3))
  expected = Preprocessing(32, 0.875, "bicubic", IMAGENET.mean, IMAGENET.std)
  crop = crops.center_crop(3, 32, expected.center_crop_fraction, "bicubic")
  seen = np.stack([crop(file, None) for _, file in pictures(100, "color")])
  # About their mean, or most pictures were of one class.
  network = Predictor(model, variables, expected, ())
  logits = jax.jit(network.logits)(variables, seen)
  head = variables["params"]["head"]
  head["bias"] = -40 * logits.mean(0)
  head["kernel"] = 40 * head["kernel"]
  path = tmp_path_factory.mktemp("published") / "imagenet"
  fr.save_pretrained(path, model, variables, preprocessing=expected)
  return path


@pytest.fixture(scope="module")
def timm_logits(published):
  """Evaluates with timm: (its files by a folder's targets) -> logits."""
  pytest.importorskip("tests.weights.torch_models").load_torchvision()
  timm = pytest.importorskip("timm")
  data = pytest.importorskip("timm.data")
  import torch

  network = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
  expected = data.resolve_data_config({}, model=network)

  def logits(folder):
    """Returns the logits of all images, their targets and their names."""
    images = data.create_dataset("folder", str(folder))
    batches = data.create_loader(
      images,
      batch_size=64,
      use_prefetcher=False,
      num_workers=0,
      persistent_workers=False,
      **expected,
    )
    with torch.no_grad():
      pairs = [(network(pixels), target) for pixels, target in batches]
    outputs, targets = (torch.cat(each) for each in zip(*pairs, strict=True))
    return outputs, targets, images.filenames(basename=True)

  return logits


def pictures(count, kind):
  """Yields names and files of made-up pictures of odd sizes.

  Args:
    count: number of pictures.
    kind: "gray" for drawings in gray, "color" for photographs.
  """
  rng = np.random.default_rng(1)
  for number in range(1, count + 1):
    height, width = 2 * rng.integers(18, 40, 2) + 1
    few = rng.integers(0, 256, (4, 5, 1 if kind == "gray" else 3), np.uint8)
    large = Image.fromarray(few.squeeze()).resize((int(width), int(height)))
    yield f"ILSVRC2012_val_{number:08}.JPEG", encode(large, "JPEG", quality=90)


# timm does not close the files that it reads.
UNCLOSED = pytest.mark.filterwarnings("ignore::ResourceWarning")
# Of the images of a set: names of its classes, and what it has pictures of.
TEST_SETS = {
  "a": (lambda: info("a_synsets"), "color"),
  "r": (lambda: info("r_synsets"), "gray"),
  "v2": (lambda: [str(label) for label in range(1000)], "color"),
  "sketch": (lambda: info("synsets"), "gray"),
}


def info(name):
  """Returns the words of a file of timm's, such as the classes of a set."""
  spec = importlib.util.find_spec("timm")
  if spec is None or spec.origin is None:
    pytest.skip("timm is not installed")
  folder = pathlib.Path(spec.origin).parent / "data" / "_info"
  return (folder / f"imagenet_{name}.txt").read_text().split()


@pytest.mark.deep
@UNCLOSED
@pytest.mark.parametrize("kind", TEST_SETS)
def test_accuracy_on_other_test_sets_is_that_of_timm(
  evaluate, published, timm_logits, tmp_path, kind
):
  """To the image, by timm's readers, transform and network, as it validates.

  Half of the pictures are of the class that timm predicts among those of the
  set, and each class has one.
  """
  names, colors = TEST_SETS[kind]
  names = names()
  files = list(pictures(300, colors))
  for name, content in files:
    path = tmp_path / "all" / "any" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  outputs, _, order = timm_logits(tmp_path / "all")
  indices = None
  if kind in ("a", "r"):  # What validate.py takes as --valid-labels.
    indices = list(map(int, info(f"{kind}_indices")))
    outputs = outputs[:, indices]
  predicted = dict(zip(order, outputs.argmax(1).tolist(), strict=True))
  assert len(set(predicted.values())) > 20
  rng, root = np.random.default_rng(2), tmp_path / "images"
  wanted = {
    name: label if n % 2 else int(rng.integers(len(names)))
    for n, (name, label) in enumerate(predicted.items())
  }
  contents = dict(files)
  for label, name in enumerate(names):
    (root / name).mkdir(parents=True)
    (root / name / "other.JPEG").write_bytes(files[label % 300][1])
  for name, label in wanted.items():
    (root / names[label] / name).write_bytes(contents[name])

  outputs, targets, _ = timm_logits(root)
  if indices is not None:
    outputs = outputs[:, indices]
  best = outputs.topk(5, 1).indices == targets[:, None]
  found = evaluate(weights=published)
  assert found["val/count"] == len(targets) == 300 + len(names)
  for number in (1, 5):
    right = int(best[:, :number].sum())
    assert right > 100
    assert found[f"val/top{number}"] * len(targets) == pytest.approx(right)


@pytest.mark.deep
@UNCLOSED
def test_accuracy_on_real_labels_is_that_of_timm(
  evaluate, published, timm_logits, tmp_path
):
  """By timm's reader of these labels."""
  real_labels = pytest.importorskip("timm.data.real_labels")
  root, rng = tmp_path / "images", np.random.default_rng(3)
  for number, (name, content) in enumerate(pictures(300, "color")):
    path = root / ("n01440764", "n02085620")[number % 2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  outputs, _, names = timm_logits(root)
  predicted = dict(zip(names, outputs.argmax(1).tolist(), strict=True))
  real = []
  for number, name in enumerate(sorted(predicted)):
    others = rng.integers(0, 1000, number % 3).tolist()
    real.append([*others, predicted[name]] if number % 4 else others)
  assert [] in real
  (tmp_path / "real.json").write_text(json.dumps(real))
  theirs = real_labels.RealLabelsImagenet(
    names, str(tmp_path / "real.json"), topk=(1,)
  )
  theirs.add_result(outputs)
  right = theirs.is_correct[1]
  found = evaluate("--real-labels", tmp_path / "real.json", weights=published)
  assert found["val/count"] == len(right) < 300
  assert found["val/real_top1"] == pytest.approx(sum(right) / len(right))
  assert 100 < sum(right) < len(right)
