"""What is counted in a data set, and which of its images are equal."""

import gc
import weakref

import numpy as np
from PIL import Image
import pytest

from flax_resnet.data.audit import audit_split, find_duplicates, report
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.manifest import ManifestSource
from flax_resnet.data.sources import ArraySource, Columns
from tests.data.images import encode, photograph, plain

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), np.uint8)


def audited(**indices):
  """Returns splits of pictures, by number; a picture's label is its place."""
  return [
    audit_split(
      split, ArraySource(PIXELS[list(of)], np.arange(len(of)), "abcd")
    )
    for split, of in indices.items()
  ]


@pytest.mark.parametrize(
  ("splits", "expected"),
  [
    ({"train": (0, 1, 2, 3), "test": (4, 5)}, []),
    ({"train": (0, 1, 0, 1), "test": (4, 5)}, ["0a 0c", "0b 0d"]),
    ({"train": (0, 1, 2, 3), "test": (5, 1)}, ["0b 1b"]),
    ({"train": (3, 2, 1), "test": (3,), "dev": (8, 3)}, ["0a 1a 2b"]),
  ],
)
def test_equal_images_are_found_wherever_they_are(splits, expected):
  audits = audited(**splits)
  names = list(splits)
  found = list(find_duplicates(audits))
  assert [
    " ".join(f"{names.index(i['split'])}{i['class']}" for i in each.images)
    for each in found
  ] == expected
  for each, text in zip(found, expected, strict=True):
    assert each.across_splits == (len({part[0] for part in text.split()}) > 1)
    assert each.unequal_labels == (len({part[1] for part in text.split()}) > 1)


def test_the_pixels_count_and_not_the_bytes(tmp_path):
  image = photograph(20, 30)
  turned = Image.Exif()
  turned[0x0112] = 3
  files = {
    "a/0.png": encode(image),
    "a/1.png": encode(image, compress_level=0),
    "a/2.tiff": encode(image[::-1, ::-1], "TIFF", exif=turned),
    # As many bytes, in another shape.
    "b/0.png": encode(image.reshape(30, 20, 3)),
    "b/1.webp": encode(image, "WEBP", lossless=True),
    "b/2.jpg": encode(image, "JPEG"),
  }
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  (found,) = find_duplicates(
    [audit_split("t", FolderSource(tmp_path, "train"))]
  )
  names = [
    image["image"].removeprefix(f"{tmp_path}/") for image in found.images
  ]
  assert names == ["a/0.png", "a/1.png", "a/2.tiff", "b/1.webp"]


def test_a_report_counts_what_there_is(split_folder):
  anemone = split_folder / "train" / "anemone"
  (anemone / "사진 00.jpg").write_bytes(b"no image")
  (anemone / "large.png").write_bytes(encode(photograph(40, 70)))
  (anemone / "z.png").write_bytes(plain((1, 2, 3), "PNG"))
  (split_folder / "val" / "wild rose" / "z.png").write_bytes(
    plain((1, 2, 3), "PNG")
  )
  audits = [
    audit_split(split, FolderSource(split_folder, split), num_threads=threads)
    for split, threads in (("train", 0), ("val", 3))
  ]
  found = report(audits)
  train, val = found["splits"]["train"], found["splits"]["val"]
  assert (train["images"], val["images"]) == (32, 10)
  assert train["classes"] == {"anemone": 11, "wild rose": 5, "큰 튤립": 15}
  assert val["classes"] == {"anemone": 3, "wild rose": 4, "큰 튤립": 3}
  assert train["formats"] == {"JPEG RGB": 29, "PNG RGB": 2}
  assert (train["height"], train["width"]) == ([10, 10, 40], [12, 12, 70])
  assert list(train["broken"]) == [str(anemone / "사진 00.jpg")]
  assert "are not an image" in train["broken"][str(anemone / "사진 00.jpg")]
  (duplicates,) = found["duplicates"]
  assert [image["class"] for image in duplicates["images"]] == [
    "anemone",
    "wild rose",
  ]
  counts = {"broken": 1, "across_splits": 1, "unequal_labels": 1}
  assert found["wrong"] == counts


def test_images_of_several_classes_are_counted_in_each(tmp_path):
  for n in range(6):
    (tmp_path / f"{n}.png").write_bytes(plain((n // 2, 0, 0), "PNG"))
  labels = ["a|b", "b|a", "c", "", "", ""]
  lines = [f"{n}.png,{label}" for n, label in enumerate(labels)]
  (tmp_path / "all.csv").write_text("\n".join(["path,label", *lines]))
  columns = Columns(label_separator="|")
  source = ManifestSource(tmp_path / "all.csv", "train", columns)
  found = report([audit_split("train", source)])
  assert found["splits"]["train"]["classes"] == {"a": 2, "b": 2, "c": 1}
  pairs = [[i["class"] for i in each["images"]] for each in found["duplicates"]]
  assert pairs == [["a, b", "a, b"], ["c", ""], ["", ""]]
  assert found["wrong"]["unequal_labels"] == 1


def test_a_split_of_broken_images(split_folder):
  for path in (split_folder / "val").rglob("*.jpg"):
    path.write_bytes(b"no image")
  found = report([audit_split("val", FolderSource(split_folder, "val"))])
  assert len(found["splits"]["val"]["broken"]) == 9
  assert found["splits"]["val"]["height"] == []


def test_no_image_is_kept():
  """Not a reference to the pixels of any but the last few."""
  alive, most = set(), 0

  class Pixels(np.ndarray):
    pass

  class Large(ArraySource):
    def __getitem__(self, index):
      nonlocal most
      image = np.zeros((50, 50, 3), np.uint8).view(Pixels)
      alive.add(index)
      weakref.finalize(image, alive.discard, index)
      most = max(most, len(alive))
      return {"image": image, "label": 0}

  source = Large(np.zeros((3000, 1, 1, 1), np.uint8), np.zeros(3000, int), "a")
  audit_split("train", source, num_threads=2)
  gc.collect()
  assert most < 20
  assert not alive
