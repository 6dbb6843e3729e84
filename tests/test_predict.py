"""predict and export: from image files to classes, with or without us."""

import functools
from importlib import metadata
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file

import flax_resnet as fr
from flax_resnet import __main__ as verbs
from flax_resnet.predictor import find_images
from flax_resnet.predictor import Predictor
from flax_resnet.training import train
from flax_resnet.training.setup import prepare
from flax_resnet.weights.pretrained import load_pretrained
from tests import recipes


@pytest.fixture
def run(call_main):
  return functools.partial(call_main, verbs.main)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
  """A short run on digits."""
  path = tmp_path_factory.mktemp("run")
  config = recipes.tiny(data_dir)
  config.update(num_steps=30, log_every=30, eval_every=30, checkpoint_every=30)
  train(config, path)
  return path


@pytest.fixture(scope="module")
def test_split(workdir, data_dir):
  """What evaluation sees: the first nine test digits, and their logits."""
  from flax_resnet import sharding

  config = json.loads((workdir / "config.json").read_text())
  dataset = prepare(config, sharding.make_mesh(jax.devices()[:1])).dataset
  records = [dataset.eval.source[index] for index in range(9)]
  batch = next(dataset.eval.eval_batches(batch_size=9))
  loaded = load_pretrained(workdir)
  mean, std = loaded.preprocessing.mean[0], loaded.preprocessing.std[0]
  scaled = (batch["image"].astype(np.float32) / 255 - mean) / std
  logits = loaded.model.apply(
    loaded.variables, jnp.asarray(scaled), train=False
  )
  return records, batch["image"], scaled, np.asarray(logits)


@pytest.fixture
def folder(test_split, tmp_path):
  """These digits as image files, in folders."""
  for number, record in enumerate(test_split[0]):
    place = tmp_path / "digits" / str(number % 2)
    place.mkdir(parents=True, exist_ok=True)
    pixels = record["image"].squeeze(-1)
    Image.fromarray(pixels).save(place / f"{number}.png")
  return tmp_path / "digits"


def softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_predictions_are_those_of_evaluation(
  run, workdir, folder, test_split, batch_size
):
  probabilities = softmax(test_split[3])
  code, out, err = run(
    *("predict", "--workdir", workdir, folder, "--json"),
    *("--batch-size", batch_size, "--top", 3),
  )
  assert (code, err) == (0, "")
  rows = [json.loads(line) for line in out.splitlines()]
  # In the order of their paths: the even ones first.
  order = [0, 2, 4, 6, 8, 1, 3, 5, 7]
  assert [row["image"] for row in rows] == [
    str(folder / str(n % 2) / f"{n}.png") for n in order
  ]
  for number, row in zip(order, rows, strict=True):
    best = np.argsort(-probabilities[number])[:3]
    assert [c["label"] for c in row["classes"]] == list(best)
    assert [c["class"] for c in row["classes"]] == [str(b) for b in best]
    assert [c["probability"] for c in row["classes"]] == pytest.approx(
      list(probabilities[number][best]), abs=1e-5
    )


def test_a_table_is_printed_and_ten_classes_are_all_there_are(
  run, workdir, folder
):
  code, out, _ = run("predict", "--workdir", workdir, folder / "0/0.png")
  lines = out.splitlines()
  assert code == 0
  assert lines[0] == str(folder / "0/0.png")
  assert len(lines) == 6
  shares = [float(line.split("%")[0]) for line in lines[1:]]
  assert shares == sorted(shares, reverse=True)
  _, out, _ = run(
    *("predict", "--workdir", workdir, folder / "0/0.png", "--top", 99)
  )
  assert len(out.splitlines()) == 11


def test_files_folders_and_patterns_are_found(folder):
  (folder / "notes.txt").touch()
  names = lambda *what: [p.name for p in find_images(list(map(str, what)))]
  assert names(folder / "1") == ["1.png", "3.png", "5.png", "7.png"]
  assert names(folder / "*" / "[05].png") == ["0.png", "5.png"]
  assert names(folder / "**" / "8.png") == ["8.png"]
  assert names(folder / "**" / "1" / "**" / "[35].png") == ["3.png", "5.png"]
  # A file that is named is taken, whatever its ending.
  assert names(folder / "notes.txt", folder / "0/2.png") == [
    "notes.txt",
    "2.png",
  ]


@pytest.fixture
def weights(tmp_path):
  """A ResNet-18 of five classes for photographs."""
  model = fr.create_model("resnet18", num_classes=5)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: rng.uniform(0.1, 0.2, s.shape).astype(s.dtype), shapes
  )
  path = tmp_path / "weights.safetensors"
  save_file(fr.to_torch(variables, model), path)
  return path


def test_weights_that_say_nothing_get_the_preprocessing_of_imagenet(
  run, weights, tmp_path
):
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (300, 400, 3), np.uint8)
  picture = Image.fromarray(pixels)
  picture.save(tmp_path / "photo.png")
  code, out, _ = run(
    *("predict", "--weights", weights, "--model", "resnet18", "--json"),
    *(tmp_path / "photo.png", "--batch-size", 1),
  )
  assert code == 0
  # torchvision's: the short side to 256, the central 224.
  resized = picture.resize((341, 256), Image.Resampling.BILINEAR)
  box = (58, 16, 58 + 224, 16 + 224)
  scaled = np.asarray(resized.crop(box), np.float32) / 255
  scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  loaded = load_pretrained(weights, "resnet18")
  logits = loaded.model.apply(
    loaded.variables, jnp.asarray(scaled[None], jnp.float32), train=False
  )
  classes = json.loads(out)["classes"]
  wanted = softmax(np.asarray(logits[0]))
  assert [c["class"] for c in classes] == [str(c["label"]) for c in classes]
  for c in classes:
    assert c["probability"] == pytest.approx(wanted[c["label"]], abs=1e-3)


def test_weights_of_a_recipe_are_used_with_it(
  run, workdir, folder, tmp_path, data_dir
):
  recipe = recipes.write_tiny(tmp_path, data_dir)
  weights = tmp_path / "digits.safetensors"
  code, _, err = run("convert", workdir, weights)
  assert (code, err) == (0, "")
  _, of_run, _ = run("predict", "--workdir", workdir, folder)
  code, out, err = run(
    "predict", "--weights", weights, "--config", recipe, folder
  )
  assert (code, err) == (0, "")
  assert out == of_run
  code, _, err = run(
    "predict", "--workdir", workdir, "--config", recipe, folder
  )
  assert code == 2
  assert "--config is that of --weights" in err


def test_a_closed_pipe_is_no_error(workdir, folder):
  command = [sys.executable, "-m", "flax_resnet", "predict", "--workdir"]
  process = subprocess.Popen(
    [*command, str(workdir), str(folder), "--batch-size", "1"],
    cwd=recipes.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait() == 141


def test_the_network_sees_what_torchvision_would_show_it(weights, tmp_path):
  """A photograph's short side to 256, then the central 224."""
  rng = np.random.default_rng(2)
  picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
  picture.save(tmp_path / "photo.png")
  resized = picture.resize((341, 256), Image.Resampling.BILINEAR)
  wanted = np.asarray(resized.crop((58, 16, 58 + 224, 16 + 224)), np.int32)
  predictor = Predictor.of(load_pretrained(weights, "resnet18"))
  found = predictor.read(tmp_path / "photo.png").astype(np.int32)
  assert found.shape == (224, 224, 3)
  assert np.abs(found - wanted).max() <= 1


def test_wrong_inputs_of_predict(run, workdir, weights, folder, tmp_path):
  image = folder / "0/0.png"
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG and no more")
  empty = tmp_path / "empty"
  empty.mkdir()
  of_run = ("--workdir", workdir)
  for arguments, message in (
    ((*of_run, tmp_path / "none.png"), "there is no image"),
    ((*of_run, empty), f"there is no image in {empty}: looked for .png"),
    ((*of_run, broken), f"{broken}: 16 bytes that start with"),
    ((*of_run, image, "--top", 0), "--top is 0: use 1 or more"),
    ((*of_run, image, "--batch-size", 0), "--batch-size is 0"),
    ((*of_run, image, "--model", "resnet18"), "a run says its own"),
    ((image,), "give either --workdir or --weights"),
    (("--workdir", empty, image), f"{empty} is not a workdir"),
    (("--weights", weights, image), "give --model NAME"),
    (
      ("--weights", tmp_path / "no.safetensors", image, "--model", "resnet18"),
      "there is no weight file",
    ),
    (
      ("--weights", weights, image, "--model", "resnet34"),
      "missing: layer1.2.bn1",
    ),
  ):
    code, _, err = run("predict", *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


# What `pip install jax flatbuffers` installs.
JAX_ALONE = (
  *("jax", "jaxlib", "flatbuffers"),
  *("ml_dtypes", "numpy", "opt_einsum", "scipy"),
)
TEN_LINES = """
import sys
import numpy
from jax import export
file, images, logits = sys.argv[1:]
network = export.deserialize(bytearray(open(file, "rb").read()))
numpy.save(logits, network.call(numpy.load(images)))
"""


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory):
  """A folder of packages that has what JAX needs, and nothing else."""
  place = tmp_path_factory.mktemp("packages")
  for name in JAX_ALONE:
    for top in {file.parts[0] for file in metadata.files(name)} - {".."}:
      (place / top).symlink_to(metadata.distribution(name).locate_file(top))
  return place


@pytest.mark.parametrize("flags", [(), ("--pixels",), ("--pixels", "--fold")])
def test_an_exported_network_runs_where_jax_is_alone(
  run, workdir, test_split, tmp_path, jax_alone, flags
):
  _, pixels, scaled, logits = test_split
  out = tmp_path / "network.stablehlo"
  code, said, err = run("export", "--workdir", workdir, out, *flags)
  assert (code, err) == (0, "")
  kind = "uint8" if flags else "float32"
  assert f"takes {kind} [b, 8, 8, 1], gives logits float32 [b, 10]" in said
  images = pixels if flags else scaled
  start = f"import sys; sys.path.append({str(jax_alone)!r})\n"
  for count in (1, 9):  # The batch size is open.
    np.save(tmp_path / "images.npy", images[:count])
    files = out, tmp_path / "images.npy", tmp_path / "logits.npy"
    subprocess.run(
      # Without the packages of this environment.
      [sys.executable, "-I", "-S", "-c", start + TEN_LINES, *map(str, files)],
      cwd=tmp_path,
      check=True,
    )
    np.testing.assert_allclose(
      np.load(tmp_path / "logits.npy"), logits[:count], atol=1e-5
    )


def test_nothing_else_is_where_jax_is_alone(jax_alone):
  names = {path.name.split("-")[0] for path in jax_alone.iterdir()}
  assert {"jax", "flatbuffers"} <= names
  assert not names & {"flax", "flax_resnet", "optax", "orbax", "etils"}


def test_an_exported_network_is_for_every_platform(workdir):
  from jax import export

  from flax_resnet.export import to_stablehlo

  predictor = Predictor.of(load_pretrained(workdir))
  data = to_stablehlo(predictor, pixels=True)
  exported = export.deserialize(bytearray(data))
  assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize("flags", [(), ("--pixels", "--fold")])
def test_an_onnx_model_gives_the_same_logits(
  run, workdir, test_split, tmp_path, flags
):
  pytest.importorskip("jax2onnx")
  runtime = pytest.importorskip("onnxruntime")
  _, pixels, scaled, logits = test_split
  out = tmp_path / "network.onnx"
  code, said, err = run("export", "--workdir", workdir, out, *flags)
  assert (code, err) == (0, "")
  assert said.count("\n") == 1  # And none of the converter's chatter.
  session = runtime.InferenceSession(out)
  images = pixels if flags else scaled
  for count in (1, 9):
    (found,) = session.run(["logits"], {"images": images[:count]})
    np.testing.assert_allclose(found, logits[:count], atol=1e-5)


def test_without_its_converter_onnx_is_not_written(
  run, workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, _, err = run("export", "--workdir", workdir, tmp_path / "net.onnx")
  assert (code, err.count("\n")) == (2, 1)
  assert "pip install 'flax_resnet[onnx]'" in err


def test_what_export_refuses(run, workdir, tmp_path):
  there = tmp_path / "there"
  there.touch()
  for arguments, message in (
    (("--workdir", workdir, there), "is there already"),
    (("--workdir", workdir, tmp_path / "a" / "b"), "is not a folder"),
    ((tmp_path / "out",), "give either --workdir or --weights"),
  ):
    code, _, err = run("export", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
  assert not there.read_bytes()
