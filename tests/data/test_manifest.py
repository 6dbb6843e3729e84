"""Manifests: tables of paths and labels."""

import collections
import csv
import pickle

import numpy as np
import pytest

from flax_resnet import data
from flax_resnet.data import manifest as manifests
from flax_resnet.data import table
from flax_resnet.data.folder import FolderSource
from flax_resnet.data.identity import identity
from flax_resnet.data.manifest import ManifestSource
from flax_resnet.data.sources import Columns
from flax_resnet.errors import ImageError, InputError
from tests.data.images import COUNTS, number_and_class


def lines_of(split_folder):
  """Returns path, label and split of the images of a folder."""
  return [
    (str(path.relative_to(split_folder)), path.parent.name, split)
    for split in ("train", "val")
    for path in sorted((split_folder / split).rglob("*.jpg"))
  ]


def write(path, lines, header=("path", "label", "split")):
  with path.open("w", newline="", encoding="utf-8") as file:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([header, *lines])
  return path


def section(root, **changes):
  return {
    "name": "manifest",
    "root": str(root),
    "train_split": "train",
    "eval_split": "val",
    "image_size": 8,
    "num_threads": 2,
  } | changes


def load(root, num_classes=3, **changes):
  return data.load(section(root, **changes), num_classes=num_classes)


def parquet(path, lines, header=("path", "label", "split")):
  pa = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  columns = zip(*lines, strict=True)
  pq.write_table(pa.table(dict(zip(header, columns, strict=True))), path)
  return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_a_manifest_is_the_folder_that_it_lists(split_folder, ending):
  """Images, labels, order and identities, also of parts."""
  writer = parquet if ending == "parquet" else write
  root = writer(split_folder / f"all.{ending}", lines_of(split_folder))
  dataset = load(root)
  assert dataset.class_names == sorted(COUNTS)
  whole = FolderSource(split_folder, "train")
  for split in ("train", "train[:60%]"):
    source = ManifestSource(root, split, Columns(), seed=3)
    theirs = FolderSource(split_folder, split, seed=3)
    assert len(source) == len(theirs)
    for i in range(len(source)):
      assert source.name(i).startswith(f"{theirs.name(i)} (")
      assert source[i] == theirs[i]
  assert (
    identity(ManifestSource(root, "train", Columns()))["classes"]
    == (identity(whole)["classes"])
  )
  batch = next(dataset.train.train_batches(batch_size=30, seed=0))
  np.testing.assert_array_equal(number_and_class(batch)[1], batch["label"])
  (batch,) = dataset.eval.eval_batches(batch_size=9)
  assert batch["mask"].all()


def test_lines_may_be_anything_that_is_csv(split_folder):
  lines = lines_of(split_folder)
  root = split_folder / "all.csv"
  text = "\ufeffcomment,image,class\r\n\r\n"
  for path, label, _ in lines:
    text += f'"two\nlines, and a ""quote""","{path}",{label}\r\n\r\n'
  root.write_text(text, "utf-8", newline="")
  columns = Columns(path_column="image", label_column="class")
  source = ManifestSource(root, "train", columns)
  assert len(source) == len(lines)
  assert source.name(0).endswith(f" (line 4 of {root})")
  assert source.name(2).endswith(f" (line 10 of {root})")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoted", [None, 0, 11, 29])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_plain_lines_are_read_as_csv_does(
  split_folder, monkeypatch, newline, quoted, end
):
  """In blocks that end anywhere, before and after a line with quotes."""
  monkeypatch.setattr(table, "_BLOCK", 100)
  monkeypatch.setattr(table, "_CHUNK", 4)
  lines = [f"x,{label},{path}" for path, label, _ in lines_of(split_folder)]
  if quoted is not None:
    lines[quoted] = '"a ""quote"", and a comma",' + lines[quoted][2:]
  root = split_folder / "all.csv"
  text = newline.join(["note,label,path", *lines]) + end.replace("\n", newline)
  root.write_text(text, "utf-8", newline="")
  with root.open(newline="", encoding="utf-8") as file:
    expected = list(csv.reader(file))[1:40]
  source = ManifestSource(root, "train", Columns())
  assert len(source) == 39
  for i, (_, label, path) in enumerate(expected):
    assert source.name(i) == f"{split_folder / path} (line {i + 2} of {root})"
    assert source.class_names[source[i]["label"]] == label


def test_an_undivided_manifest_is_taken_in_parts(split_folder):
  lines = [line[:2] for line in lines_of(split_folder)]
  root = write(split_folder / "all.csv", lines, ("path", "label"))
  dataset = load(root, train_split="train[:70%]", eval_split="train[70%:]")
  parts = dataset.train.source, dataset.eval.source
  names = [{part.name(i) for i in range(len(part))} for part in parts]
  assert not names[0] & names[1]
  assert len(names[0] | names[1]) == len(lines)
  labels = collections.Counter(parts[0][i]["label"] for i in range(27))
  assert sorted(labels.values()) == [6, 9, 13] or sum(labels.values()) == 27


@pytest.mark.parametrize(
  ("labels", "classes", "names", "expected"),
  [
    (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
    (["10", "9", "2"], None, ["2", "9", "10"], [2, 1, 0]),
    (["b", "a", "b"], "b\na\nc\n", ["b", "a", "c"], [0, 1, 0]),
    (["2", "0", "2"], "b\na\nc\n", ["b", "a", "c"], [2, 0, 2]),
    (["01", "0", "01"], "b\na\nc", ["b", "a", "c"], [1, 0, 1]),
    (["1", "2", "1"], "2\n1\n", ["2", "1"], [1, 0, 1]),
  ],
)
@pytest.mark.parametrize("by_key", [False, True])
def test_classes(tmp_path, labels, classes, names, expected, by_key):
  paths = []
  for i in range(3):
    (tmp_path / f"{i}.jpg").write_bytes(b"image")
    paths.append(f"{i}.jpg")
  root = write(
    tmp_path / "all.csv", zip(paths, labels, strict=True), ("path", "label")
  )
  columns = Columns()
  if classes is not None:
    file = tmp_path / ("names" if by_key else "classes.txt")
    file.write_text(classes)
    columns = Columns(classes_file=str(file) if by_key else None)
  source = ManifestSource(root, "train", columns)
  assert source.class_names == names
  assert [source[i]["label"] for i in range(3)] == expected


def test_numbers_that_are_names_never_count_the_classes(tmp_path):
  """Of a split that lacks one, labels would silently be others."""
  lines = [(f"{i}.jpg", f"{i + 1}", "train") for i in range(3)]
  lines += [("3.jpg", "1", "val"), ("4.jpg", "7", "val")]
  for name, *_ in lines:
    (tmp_path / name).write_bytes(b"")
  root = write(tmp_path / "all.csv", lines)
  with pytest.raises(
    InputError, match="line 6 .* the label '7', which is none"
  ):
    load(root)


def test_an_image_may_have_several_classes(split_folder):
  labels = ["a|c", "", "b", "c | a", "a|b|c"]
  lines = [
    (path, labels[i % 5]) for i, (path, *_) in enumerate(lines_of(split_folder))
  ]
  root = write(split_folder / "all.csv", lines, ("path", "label"))
  source = ManifestSource(root, "train", Columns(label_separator="|"))
  assert source.class_names == ["a", "b", "c"]
  expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]]
  for i in range(len(source)):
    label = source[i]["label"]
    assert label.dtype == np.uint8
    assert label.tolist() == expected[i % 5]
  assert source.multi_label
  np.testing.assert_array_equal(source.labels[:5], expected)
  found = identity(source)
  total = np.sum([source[i]["label"] for i in range(len(source))], 0, int)
  assert found["classes"] == dict(zip("abc", total.tolist(), strict=True))
  part = ManifestSource(root, "train[:50%]", Columns(label_separator="|"))
  names = [part.name(i) for i in range(len(part))]
  assert names != sorted(names)
  by_name = {source.name(i): source[i]["label"] for i in range(len(source))}
  for i, name in enumerate(names):
    np.testing.assert_array_equal(part[i]["label"], by_name[name])
  again = pickle.loads(pickle.dumps(part))
  np.testing.assert_array_equal(again[3]["label"], part[3]["label"])
  lines[7] = (lines[7][0], "a|b|d")
  root = write(split_folder / "all.csv", lines, ("path", "label"))
  columns = Columns(label_separator="|")
  with pytest.raises(ValueError, match="line 9 .* 'd', which is none of"):
    ManifestSource(root, "train", columns, class_names=["a", "b", "c"])


def change(row, column, value):
  """Returns a function that changes a cell."""

  def apply(lines):
    lines[row] = (
      *lines[row][:column],
      value,
      *lines[row][column + 1 :],
    )
    return lines

  return apply


LINES = {
  "line 5 of ROOT has no label: give it one": change(3, 1, " "),
  "line 4 of ROOT has no path": change(2, 0, ""),
  "line 34 of ROOT has the label 'tulip', which is none of the classes: "
  "anemone, wild rose, 큰 튤립": change(32, 1, "tulip"),
  "lines 2 and 12 of ROOT give train/anemone/사진 00.jpg the labels 'anemone' "
  "and 'wild rose': leave one": change(10, 0, "train/anemone/사진 00.jpg"),
  "DIR/train/no.jpg (line 8 of ROOT) is not there: mend the line, in which a "
  "path is from DIR on, or set on_error='skip' to go without": change(
    6, 0, "train/no.jpg"
  ),
  "line 3 of ROOT has 2 cells, and the first line 3: a cell with a separator "
  "in it needs quotes": lambda lines: [lines[0], lines[1][:2], *lines[2:]],
  "ROOT: there is no split 'val': use one of train, or a part of one, such as "
  "'train[:90%]'": lambda lines: [line for line in lines if line[2] != "val"],
  "ROOT has 1 class (anemone): there must be 2 at least to tell apart": (
    lambda lines: [line for line in lines if line[1] == "anemone"]
  ),
}


@pytest.mark.parametrize(("expected", "changed"), LINES.items())
def test_lines_that_cannot_be(split_folder, expected, changed):
  root = write(split_folder / "all.csv", changed(lines_of(split_folder)))
  with pytest.raises(InputError) as error:
    load(root)
  said = str(error.value).removeprefix("config.data: ")
  said = said.replace(str(root), "ROOT").replace(str(split_folder), "DIR")
  assert said == expected


TEXTS = {
  "has no column 'label': it has path, class; set label": "path,class",
  "has two columns 'path': rename one": "path,label,path",
  "ROOT separates its cells by ';': write it with commas, or with tabs as": (
    "path;label;fold"
  ),
  "has no column 'path': it has none; set path_column": "",
  "has no column 'fold': it has path, label; set split_column": "path,label",
  "is not UTF-8 text (invalid start byte, after line": b"path,label,fold\n\xff",
  "line 2 of ROOT cannot be read: unexpected end of data": (
    'path,label,fold\n"a,b,c'
  ),
  "ROOT has no line after its first one": "path,label,fold\n",
}


@pytest.mark.parametrize(("expected", "text"), TEXTS.items())
def test_files_that_cannot_be(tmp_path, expected, text):
  root = tmp_path / "all.csv"
  root.write_bytes(text if isinstance(text, bytes) else text.encode())
  columns = Columns(split_column="fold")
  with pytest.raises(ValueError) as error:
    ManifestSource(root, "train", columns)
  assert expected in str(error.value).replace(str(root), "ROOT")


def test_places_that_cannot_be(tmp_path):
  for name, expected in (
    ("no.csv", r"root is .*no.csv, which is not there: give"),
    ("all.txt", r"root is .*all.txt: give the path of a manifest, .csv, .tsv"),
  ):
    with pytest.raises((ValueError, OSError), match=expected):
      ManifestSource(tmp_path / name, "train", Columns())
  pytest.importorskip("pyarrow")
  (tmp_path / "all.parquet").write_bytes(b"no")
  with pytest.raises(ValueError, match="is not a parquet file"):
    ManifestSource(tmp_path / "all.parquet", "train", Columns())


CLASSES = {
  "line 2 of FILE names no class": "a\n\nb",
  "lines 1 and 3 of FILE are the same class, 'a'": "a\nb\na\n",
  "FILE names no class": "\n",
  "classes_file is FILE, which is not there: give": None,
}


@pytest.mark.parametrize(("expected", "text"), CLASSES.items())
def test_classes_that_cannot_be(split_folder, expected, text):
  root = write(split_folder / "all.csv", lines_of(split_folder))
  file = split_folder / "names"
  if text is not None:
    file.write_text(text)
  with pytest.raises(InputError) as error:
    load(root, classes_file=str(file))
  assert expected in str(error.value).replace(str(file), "FILE")


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_missing_file_is_skipped_or_found_when_it_is_read(
  split_folder, monkeypatch
):
  root = write(split_folder / "all.csv", lines_of(split_folder))
  (split_folder / "train" / "anemone" / "사진 04.jpg").unlink()
  dataset = load(root, on_error="skip")
  next(dataset.train.train_batches(batch_size=30, seed=0))
  assert dataset.train.skipped.take() == 1
  monkeypatch.setattr(manifests, "MAX_LOOKED_FOR", 10)
  dataset = load(root)
  with pytest.raises(ImageError, match=r"04.jpg \(line 6 of .*No such file"):
    next(dataset.train.train_batches(batch_size=30, seed=0))


def test_a_manifest_that_has_changed_is_read_again(split_folder):
  lines = lines_of(split_folder)
  root = write(split_folder / "all.csv", lines)
  first = ManifestSource(root, "train", Columns())
  write(root, lines[1:])
  assert len(ManifestSource(root, "train", Columns())) == len(first) - 1
