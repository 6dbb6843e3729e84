"""predict and export: from image files to classes, with or without us."""

import functools
from importlib import metadata
import importlib.util
import json
import subprocess
import sys

import jax
from jax import export
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet import __main__ as command
from flax_resnet import storage
from flax_resnet.export import to_stablehlo
from flax_resnet.predictor import find_images, Predictor
from flax_resnet.weights import files
from flax_resnet.weights.preprocessing import IMAGENET
from flax_resnet.weights.pretrained import load_pretrained, Pretrained
from tests import recipes
from tests.drawing import variables_of
from tests.runs import make_run


@pytest.fixture
def call(call_main):
  """Runs a verb; returns its exit code and its output."""
  return functools.partial(call_main, command.main)


@pytest.fixture(scope="module")
def run(data_dir):
  """A run on digits."""
  return make_run(recipes.tiny(data_dir))


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
  """The workdir of that run, with weights that nobody has trained."""
  path = tmp_path_factory.mktemp("run")
  write_run(path, run)
  return path


def write_run(path, run):
  """Writes a workdir of a run."""
  checkpoint = path / "checkpoints" / "4"
  (checkpoint / "about").mkdir(parents=True)
  variables = variables_of(run.model, (1, *run.dataset.image_shape))
  files.write_checkpoint(checkpoint / "state", variables)
  storage.write_digests(checkpoint / "state")
  storage.write_json(checkpoint / "about" / "metadata", run.about())
  storage.write_json(path / "config.json", run.about()["config"])


@pytest.fixture(scope="module")
def predictor(workdir):
  return Predictor.of(load_pretrained(workdir))


@pytest.fixture(scope="module")
def evaluated(run, predictor):
  """The first nine test digits: pixels, normalized, and their logits."""
  pixels = next(run.dataset.eval.eval_batches(batch_size=9))["image"]
  mean, std = (run.recipe.augment[key][0] for key in ("mean", "std"))
  scaled = (pixels.astype(np.float32) / 255 - mean) / std
  evaluate = jax.jit(functools.partial(predictor.model.apply, train=False))
  return pixels, scaled, np.asarray(evaluate(predictor.variables, scaled))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
  """These digits as image files, in folders."""
  root = tmp_path_factory.mktemp("digits")
  for number in range(9):
    path = root / str(number % 2) / f"{number}.png"
    path.parent.mkdir(exist_ok=True)
    pixels = run.dataset.eval.source[number]["image"]
    Image.fromarray(np.squeeze(pixels, -1)).save(path)
  return root


def softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def test_predictions_are_those_of_evaluation(predictor, evaluated, folder):
  paths = [folder / str(n % 2) / f"{n}.png" for n in range(9)]
  found = list(predictor.predict(paths, batch_size=4))
  np.testing.assert_allclose(found, softmax(evaluated[2]), atol=1e-5)


def test_the_most_probable_classes_are_printed(
  call, workdir, folder, evaluated
):
  path = folder / "0" / "4.png"
  probabilities = softmax(evaluated[2])[4]
  best = [int(label) for label in np.argsort(-probabilities)]
  code, out, err = call("predict", "--workdir", workdir, path)
  assert (code, err) == (0, "")
  first, *rows = out.splitlines()
  assert first == str(path)
  assert [row.split()[-1] for row in rows] == list(map(str, best[:5]))
  assert rows[0].split()[0] == f"{probabilities[best[0]]:.2%}"
  code, out, _ = call("predict", "--workdir", workdir, path, "--top", 99)
  assert len(out.splitlines()) == 11
  code, out, _ = call("predict", "--workdir", workdir, path, "--json")
  row = json.loads(out)
  assert row["image"] == str(path)
  assert [c["label"] for c in row["classes"]] == best[:5]
  assert [c["probability"] for c in row["classes"]] == pytest.approx(
    list(probabilities[best[:5]]), abs=1e-5
  )


def test_files_folders_and_patterns_are_found(folder, tmp_path, monkeypatch):
  for name in ("notes.txt", "9.png", ".9.png"):
    (tmp_path / name).touch()
  (tmp_path / "digits").symlink_to(folder)
  names = lambda *paths: [p.name for p in find_images(list(map(str, paths)))]
  assert names(folder / "1") == ["1.png", "3.png", "5.png", "7.png"]
  assert names(folder / "*" / "[05].png") == ["0.png", "5.png"]
  assert names(folder / "**" / "8.png") == ["8.png"]
  assert names(folder / "**" / "1" / "**" / "[35].png") == ["3.png", "5.png"]
  assert len(names(folder / "**")) == 9
  # Hidden files are left out.
  assert names(tmp_path / "*.png") == ["9.png"]
  # Links in a folder are followed, and named ones in a pattern.
  with pytest.warns(UserWarning, match="files left out .*: .txt 1$"):
    assert len(names(tmp_path)) == 10
  assert names(tmp_path / "*" / "0" / "[46].png") == ["4.png", "6.png"]
  # A file that is named is taken, whatever its ending.
  assert names(tmp_path / "notes.txt", folder / "0/2.png") == [
    "notes.txt",
    "2.png",
  ]
  monkeypatch.chdir(folder)
  assert [str(path) for path in find_images(["*/[05].png"])] == [
    "0/0.png",
    "1/5.png",
  ]


def test_images_need_not_be_squares(call, data_dir, folder, tmp_path):
  """Predicted, evaluated, shown and exported as the run sees them."""
  run = make_run(
    recipes.one_block(data_dir),
    {"data.image_size": (6, 10), "data.center_crop_fraction": 0.9},
  )
  workdir = tmp_path / "run"
  write_run(workdir, run)
  predictor = Predictor.of(load_pretrained(workdir))
  pixels = next(run.dataset.eval.eval_batches(batch_size=9))["image"]
  assert pixels.shape == (9, 6, 10, 1)
  logits = np.asarray(jax.jit(predictor.logits)(predictor.variables, pixels))
  paths = [folder / str(n % 2) / f"{n}.png" for n in range(9)]
  found = list(predictor.predict(paths, batch_size=9))
  np.testing.assert_allclose(found, softmax(logits), atol=1e-5)
  code, out, err = call(
    *("predict", "--workdir", workdir, paths[0], "--cam", tmp_path / "cams")
  )
  assert (code, err) == (0, "")
  with Image.open(tmp_path / "cams" / "0.png") as picture:
    assert picture.size == (380, 228)
  code, out, err = call("evaluate", "--workdir", workdir, "--json")
  assert (code, err) == (0, "")
  assert json.loads(out)["val/count"] == 360
  network = tmp_path / "network.stablehlo"
  code, out, _ = call("export", "--workdir", workdir, network, "--pixels")
  assert code == 0
  assert "takes uint8 [b, 6, 10, 1], gives" in out
  exported = export.deserialize(bytearray(network.read_bytes()))
  np.testing.assert_allclose(exported.call(pixels), logits, atol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_broken_images_are_passed_over(
  call, workdir, folder, tmp_path, batch_size
):
  """The others get what they get alone, and the end names the broken ones."""
  for number, path in enumerate(sorted(folder.glob("*/*.png"))):
    (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
  broken = ["0.png", "4.png", "5.png", "99.png"]
  for name in broken:
    (tmp_path / name).write_bytes(b"no image")
  arguments = ("predict", "--workdir", workdir, "--batch-size", batch_size)
  code, out, err = call(*arguments, tmp_path, "--json")
  rows = {row["image"]: row for row in map(json.loads, out.splitlines())}
  assert list(rows) == sorted(str(path) for path in tmp_path.iterdir())
  problem = "8 bytes that start with b'no image' are not an image"
  for path, row in rows.items():
    if path.endswith(tuple(f"/{name}" for name in broken)):
      assert row == {"image": path, "error": f"{path}: {problem}"}
    else:
      alone = json.loads(call(*arguments, path, "--json")[1])
      assert [c["label"] for c in alone["classes"]] == [
        c["label"] for c in row["classes"]
      ]
  assert (code, err.count("\n")) == (2, 1)
  assert err.startswith(
    "error: predict: 4 of 10 images cannot be read: "
    f"{tmp_path}/0.png: {problem}, {tmp_path}/4.png: "
  )
  code, out, err = call(*arguments, tmp_path)
  assert code == 2
  assert out.splitlines()[0] == f"{tmp_path}/0.png: {problem}"
  assert out.count("%") == 6 * 5
  code, out, err = call(*arguments, tmp_path / "0.png", "--json")
  assert (code, err) == (2, f"error: predict: {tmp_path}/0.png: {problem}\n")


def test_larger_images_are_read_where_a_flag_says_so(call, workdir, tmp_path):
  path = tmp_path / "large.png"
  Image.new("L", (20_000, 9_000)).save(path)
  arguments = ("predict", "--workdir", workdir, path)
  code, _, err = call(*arguments)
  assert (code, err.count("\n")) == (2, 1)
  assert "more than max_pixels, 89,478,485" in err
  before = Image.MAX_IMAGE_PIXELS
  try:
    assert call(*arguments, "--max-pixels", 180_000_000)[0] == 0
  finally:
    Image.MAX_IMAGE_PIXELS = before
  assert call(*arguments, "--max-pixels", 0)[0] == 2


def predictor_of(num_classes=5, channels=3, **known):
  """Returns a predictor of thin weights, and what is known of them."""
  model = fr.create_model(
    "cifar_resnet8", num_classes=num_classes, stage_features=(4, 4, 4)
  )
  variables = variables_of(model, (1, 8, 8, channels))
  return Predictor.of(Pretrained(model, variables, **known))


def test_weights_that_say_nothing_get_the_preprocessing_of_imagenet():
  predictor = predictor_of()
  assert predictor.preprocessing == IMAGENET
  assert predictor.class_names == ("0", "1", "2", "3", "4")


def test_the_network_sees_what_torchvision_would_show_it(tmp_path):
  """A photograph's short side to 256, then the central 224."""
  rng = np.random.default_rng(2)
  picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
  picture.save(tmp_path / "photo.png")
  resized = picture.resize((341, 256), Image.Resampling.BILINEAR)
  expected = np.asarray(resized.crop((58, 16, 58 + 224, 16 + 224)), np.int32)
  found = predictor_of().read(tmp_path / "photo.png").astype(np.int32)
  assert found.shape == (224, 224, 3)
  assert np.abs(found - expected).max() <= 1


def test_weights_are_used_with_the_recipe_that_is_given(
  call, workdir, folder, tmp_path, data_dir
):
  recipe = recipes.write_tiny(tmp_path, data_dir)
  weights = tmp_path / "digits.safetensors"
  assert call("convert", workdir, weights)[0] == 0
  arguments = ("predict", folder / "0", "--weights", weights)
  code, out, err = call(*arguments, "--config", recipe)
  assert (code, err) == (0, "")
  assert out == call("predict", folder / "0", "--workdir", workdir)[1]


def test_a_closed_pipe_is_no_error(workdir, folder):
  arguments = ["predict", "--workdir", workdir, folder, "--batch-size", "4"]
  process = subprocess.Popen(
    [sys.executable, "-m", "flax_resnet", *map(str, arguments)],
    cwd=recipes.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ""
  process.stderr.close()
  assert process.wait() == 141


@pytest.mark.parametrize(
  ("attempt", "expected"),
  [
    (
      lambda path: find_images([f"{path}/none.png"]),
      "there is no image {path}",
    ),
    (
      lambda path: find_images([f"{path}/empty"]),
      "there is no image in {path}/empty: looked for .apng, .avif",
    ),
    (
      lambda path: find_images([f"{path}/**/*.gif"]),
      "there is no image in {path}/**/*.gif: looked for .apng, .avif",
    ),
    (
      lambda path: predictor_of().read(path / "broken.png"),
      "{path}/broken.png: 16 bytes that start with",
    ),
    (lambda _: predictor_of(num_classes=0), "the network has no head"),
    (
      lambda _: predictor_of(channels=1),
      "the weights want images of 1 channels, and their preprocessing gives 3",
    ),
  ],
)
def test_wrong_inputs(attempt, expected, tmp_path):
  (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError) as caught:
    attempt(tmp_path)
  assert expected.format(path=tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


# What `pip install jax flatbuffers` installs.
JAX_ALONE = (
  *("jax", "jaxlib", "flatbuffers"),
  *("ml_dtypes", "numpy", "opt_einsum", "scipy"),
)
USE = """
import sys
import numpy
import jax
from jax import export
file, images, *outputs = sys.argv[1:]
network = export.deserialize(bytearray(open(file, "rb").read()))
images = numpy.load(images)
numpy.save(outputs[0], network.call(images))
numpy.save(outputs[1], network.call(images[:1]))
"""


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory):
  """A folder of packages that has what JAX needs, and nothing else."""
  folder = tmp_path_factory.mktemp("packages")
  for name in JAX_ALONE:
    for top in {file.parts[0] for file in metadata.files(name)} - {".."}:
      (folder / top).symlink_to(metadata.distribution(name).locate_file(top))
  names = {path.name.split("-")[0] for path in folder.iterdir()}
  assert {"jax", "flatbuffers"} <= names
  assert not names & {"flax", "flax_resnet", "optax", "orbax", "etils"}
  return folder


@pytest.mark.parametrize("flags", [(), ("--pixels", "--fold")])
def test_an_exported_network_runs_where_jax_is_alone(
  call, workdir, evaluated, tmp_path, jax_alone, flags
):
  pixels, scaled, logits = evaluated
  network = tmp_path / "network.stablehlo"
  code, out, err = call("export", "--workdir", workdir, network, *flags)
  assert (code, err) == (0, "")
  kind = "uint8" if flags else "float32"
  assert f"takes {kind} [b, 8, 8, 1], gives logits float32 [b, 10]" in out
  assert f"six months newer or three weeks older than {jax.__version__}" in out
  np.save(tmp_path / "images.npy", pixels if flags else scaled)
  names = ("images.npy", "all.npy", "first.npy")
  start = f"import sys; sys.path.append({str(jax_alone)!r})\n"
  subprocess.run(
    # Without the packages of this environment.
    [sys.executable, "-I", "-S", "-c", start + USE, str(network), *names],
    cwd=tmp_path,
    check=True,
  )
  for name, expected in (("all", logits), ("first", logits[:1])):
    np.testing.assert_allclose(
      np.load(tmp_path / f"{name}.npy"), expected, atol=1e-5
    )


def test_an_exported_network_is_for_every_platform(predictor):
  exported = export.deserialize(bytearray(to_stablehlo(predictor, pixels=True)))
  assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_an_exported_network_takes_channels_first(predictor, evaluated):
  pixels, _, logits = evaluated
  exported = export.deserialize(
    bytearray(to_stablehlo(predictor, pixels=True, nchw=True))
  )
  found = exported.call(pixels.transpose(0, 3, 1, 2))
  np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "flags"),
  [("network.onnx", ()), ("NETWORK.ONNX", ("--pixels", "--fold"))],
)
def test_an_onnx_model_gives_the_same_logits(
  call, workdir, evaluated, tmp_path, name, flags
):
  pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
  runtime = pytest.importorskip("onnxruntime")
  pixels, scaled, logits = evaluated
  network = tmp_path / name
  code, out, err = call("export", "--workdir", workdir, network, *flags)
  assert (code, err, out.count("\n")) == (0, "", 1)
  session = runtime.InferenceSession(network)
  images = pixels if flags else scaled
  for count in (1, 9):
    (found,) = session.run(["logits"], {"images": images[:count]})
    np.testing.assert_allclose(found, logits[:count], atol=1e-5)


def test_without_its_converter_onnx_is_not_written(
  call, workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, _, err = call("export", "--workdir", workdir, tmp_path / "net.onnx")
  assert (code, err.count("\n")) == (2, 1)
  assert "pip install 'flax_resnet[onnx]'" in err
