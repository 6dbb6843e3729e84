"""Names that others have chosen: of files, of folders, and of the hub."""

import contextlib
import io
import json
import os
import shutil
import warnings

import huggingface_hub
import numpy as np
from PIL import Image
import pytest

import flax_resnet as fr
from flax_resnet.cli.flags import printable
from flax_resnet.data.decoding import decode
from flax_resnet.data.folder import FolderSource
from flax_resnet.errors import reported_as
from flax_resnet.models import create_model
from flax_resnet.predictor import find_images, Predictor
from flax_resnet.weights import files, hub, load_pretrained, WeightsError
from flax_resnet.weights.preprocessing import Preprocessing
from tests.drawing import variables_of
from tests.hostile.mutations import damaged, damaged_json
from tests.hostile.survival import COUNTS, survive
from tests.weights import hub_cache

NAMES = (
  *(b"a", b"b", b"train", b"val", b"x.jpg", b"y.PNG", b"-rf", b"--", b"..."),
  *(b"a\nb.jpg", b"\xff\xfe.jpg", b"\x1b[2Jz.jpg", b" .jpg", b".hidden.jpg"),
  *(b"~", b"~root.jpg", b"$(touch owned).jpg", b"*.jpg", b"[x].png", b"?"),
  *("\u202egpj.exe.jpg".encode(), "그림.jpg".encode(), b"n" * 250 + b".jpg"),
  *(b"a;b.jpg", b"%s%n.jpg", b"{0}.jpg", b"'\".jpg", b"\\.jpg", b"\r.jpg"),
)
PREPROCESSING = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


def png():
  file = io.BytesIO()
  Image.effect_noise((64, 48), 50).save(file, "PNG")
  return file.getvalue()


IMAGE = png()


def grow(folder: bytes, rng, depth=0):
  """Makes files, folders, pipes and links that lead anywhere."""
  for name in rng.sample(NAMES, rng.randrange(1, 5)):
    path = os.path.join(folder, name)
    kind = rng.random()
    if kind < 0.5 and depth < 3:
      os.mkdir(path)
      grow(path, rng, depth + 1)
    elif kind < 0.65:
      ends = (b".", b"..", name, b"nowhere", b"a", b"/dev/zero", b"../a/..")
      os.symlink(rng.choice(ends), path)
    elif kind < 0.7:
      os.mkfifo(path)
    else:
      with open(path, "wb") as file:
        file.write(IMAGE if rng.random() < 0.8 else b"")


@pytest.mark.parametrize("count", COUNTS)
def test_folders_and_files_of_any_name(tmp_path, capsys, count):
  root = tmp_path / "root"
  model = create_model("cifar_resnet8")
  predictor = Predictor(model, {}, PREPROCESSING, ())

  def attempt(rng):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    grow(os.fsencode(root), rng)
    capsys.readouterr()
    return rng.choice([train, predict])

  @contextlib.contextmanager
  def read_as(where):
    with reported_as(where), warnings.catch_warnings():
      warnings.filterwarnings("ignore", "(?s).*: files left out")
      yield

  def train():
    with read_as("config.data"):
      source = FolderSource(root, "train", on_error="skip")
      for index in range(min(len(source), 50)):
        decode(source[index]["image"], 3)
        print(source.name(index))

  def predict():
    with read_as("predict"):
      for path in find_images([str(root)])[:50]:
        predictor.read(path)
        print(printable(str(path)))

  ends = survive(tmp_path, count, attempt)
  assert min(ends.values()) > count // 20


def test_links_in_circles_end(tmp_path):
  deep = tmp_path / "a"
  for _ in range(3):
    deep.mkdir()
    (deep / "x.png").write_bytes(IMAGE)
    for name in "bcd":
      (deep / name).symlink_to(tmp_path)
    deep = deep / "inside"
  for pattern in ("", "**", "**/*.png", "**/a/**/*.png"):
    found = find_images([str(tmp_path / pattern)])
    assert [path.name for path in found] == ["x.png"] * 3


REPOSITORY = "owner/net.a1_x-y"
CONFIG = hub_cache.TRANSFORMERS | hub_cache.TIMM


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
  """A repository in a cache of huggingface_hub, without the network."""
  return hub_cache.write_repository(
    monkeypatch,
    tmp_path / "cache",
    REPOSITORY,
    tensors={"x": np.zeros(2)},
    config=CONFIG,
    preprocessor_config=hub_cache.PROCESSOR,
  )


@pytest.mark.parametrize(
  "name",
  [
    f"{REPOSITORY}@../../../outside",
    f"{REPOSITORY}@a/../../b",
    f"{REPOSITORY}@/etc/passwd",
    "../../etc/passwd",
    "owner/..",
    "/etc/passwd",
    "owner/net\n",
    "owner/net?x=y#z",
    "",
  ],
)
def test_a_name_does_not_leave_the_cache(snapshot, tmp_path, monkeypatch, name):
  asked = []
  monkeypatch.setattr(
    huggingface_hub, "hf_hub_download", lambda *a, **k: asked.append(a)
  )
  with pytest.raises(WeightsError, match=f"use {hub.PREFIX}owner/repository"):
    hub.fetch(hub.PREFIX + name)
  assert not asked


@pytest.mark.parametrize("count", COUNTS)
def test_names_of_the_hub(snapshot, tmp_path, count):
  names = [f"{REPOSITORY}@main", f"{REPOSITORY}@{hub_cache.COMMIT}", REPOSITORY]
  others = [b"../../../outside", b"/etc/passwd", b"\0", b"--", b"refs/pr/1"]
  (tmp_path / "outside").write_text(hub_cache.COMMIT)

  def attempt(rng):
    name = damaged(rng.choice(names).encode(), rng, others)
    name = hub.PREFIX + os.fsdecode(name[:300])

    def call():
      with reported_as("--weights"):
        assert hub.fetch(name).path == snapshot / "model.safetensors"

    return call

  survive(tmp_path, count, attempt)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_configs_of_the_hub(snapshot, tmp_path, count):
  def attempt(rng):
    files = {
      "config.json": CONFIG,
      "preprocessor_config.json": hub_cache.PROCESSOR,
    }
    chosen = rng.choice(list(files))
    if chosen.startswith("pre"):  # It is read where the other says nothing.
      files["config.json"] = hub_cache.TRANSFORMERS
    for file, content in files.items():
      text = json.dumps(content).encode()
      if file == chosen:
        text = damaged_json(content, rng)
      (snapshot / file).write_bytes(text)

    def call():
      with reported_as("--weights"):
        source = hub.fetch(f"{hub.PREFIX}{REPOSITORY}")
        assert all(isinstance(name, str) for name in source.class_names)
        assert source.preprocessing is None or source.preprocessing.image_size

    return call

  ends = survive(tmp_path, count, attempt)
  assert min(ends.values()) > count // 10


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_clones_of_the_hub(tmp_path, count):
  """As `save_pretrained` writes them, and with shards."""
  model = fr.create_model("cifar_resnet8", stage_features=(4, 4, 8))
  variables = variables_of(model, (1, 8, 8, 3))
  out = tmp_path / "OUT"
  fr.save_pretrained(out, model, variables, class_names=list("0123456789"))
  shard = out / "1.safetensors"
  (out / "model.safetensors").rename(shard)
  config = json.loads((out / "config.json").read_text())
  good = {
    "config.json": config | {"model_args": {"output_stride": 4}},
    "model.safetensors.index.json": {
      "weight_map": dict.fromkeys(files.read(shard), shard.name)
    },
  }

  def attempt(rng):
    chosen = rng.choice(list(good))
    for file, content in good.items():
      text = json.dumps(content).encode()
      if file == chosen:
        text = damaged_json(content, rng)
      (out / file).write_bytes(text)

    def call():
      # What it says of the names of classes.
      said = contextlib.redirect_stderr(io.StringIO())
      with said, reported_as("--weights"):
        load_pretrained(out)

    return call

  survive(tmp_path, count, attempt)
