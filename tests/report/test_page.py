"""The page has the numbers of the run, and says what is missing."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from flax_resnet.errors import InputError
from flax_resnet.insight.study import TrainedRun
from flax_resnet.report import charts as chart_room
from flax_resnet.report import page, sentences
from flax_resnet.report.measure import measure
from tests.report import pages
from tests.runs import files_of


@pytest.fixture(scope="module")
def written(runs):
  """The page of "seed0", and the files of the run before it."""
  before = files_of(runs / "seed0")
  problems = page.write_report([runs / "seed0"], runs / "seed0" / "report.html")
  assert not problems
  return before


def test_nothing_else_of_the_run_is_touched(runs, written):
  after = files_of(runs / "seed0")
  assert after.pop(runs / "seed0" / "report.html")
  assert after == written


def test_curves_are_those_of_metrics_jsonl(runs, written):
  text, charts = pages.read(runs / "seed0" / "report.html")
  lines = (runs / "seed0" / "metrics.jsonl").read_text().splitlines()
  rows = list(map(json.loads, lines))
  for chart, name, key in (
    ("curve-top1", "evaluation", "val/top1"),
    ("curve-top1", "training", "train/top1"),
    ("curve-loss", "evaluation", "val/loss"),
    ("curve-loss", "training", "train/loss"),
    ("curve-learning_rate", "training", "learning_rate"),
    ("curve-images_per_second", "training", "images_per_second"),
  ):
    expected = [[row["step"], row[key]] for row in rows if key in row]
    assert pages.points(charts, chart, name) == expected
  assert f"{rows[-1]['val/top1']:.2%}" in text
  assert "1 x cpu, JAX 0." in text


def test_the_page_has_what_was_measured(runs, written, measured):
  text, charts = pages.read(runs / "seed0" / "report.html")
  mistakes = measured.mistakes
  assert mistakes.confusion.sum() == 72
  cells = re.findall(r'<td class="(?:right|none|)" [^>]*>([^<]*)</td>', text)
  found = [0 if cell == "·" else int(cell) for cell in cells]
  np.testing.assert_array_equal(np.reshape(found, (10, 10)), mistakes.confusion)
  bins = mistakes.calibration
  filled = bins.counts > 0
  np.testing.assert_allclose(
    pages.points(charts, "reliability", "seed0"),
    np.stack([bins.confidence[filled], bins.accuracy[filled]], 1),
  )
  after = pages.points(charts, "gradients", "after training")
  assert after == [
    [number, pytest.approx(block.gradient)]
    for number, block in enumerate(measured.after.blocks, 1)
  ]
  assert {chart["id"] for chart in charts} >= {"residuals", "responses"}
  # Ten of each, and their maps: three pictures of an error, two of the others.
  assert text.count("<img ") == 3 * 10 + 2 * min(
    10, np.trace(mistakes.confusion)
  )


def test_examples_are_those_of_the_split(runs, measured):
  trained = TrainedRun.load(runs / "seed0")
  images = next(trained.run.dataset.eval.eval_batches(batch_size=72))
  assert len(measured.errors) == 4
  for example in (*measured.errors, *measured.unsure):
    it = example.mistake
    np.testing.assert_array_equal(it.image, images["image"][it.index])
    assert it.label == images["label"][it.index]
    assert example.cam.shape == it.image.shape[:2]
  assert all(e.mistake.label != e.mistake.predicted for e in measured.errors)
  assert all(e.mistake.label == e.mistake.predicted for e in measured.unsure)
  sure = [e.mistake.probability for e in measured.errors]
  assert sure == sorted(sure, reverse=True)
  unsure = [e.mistake.probability for e in measured.unsure]
  assert unsure == sorted(unsure)


def test_runs_of_several_seeds_are_one_with_their_spread(
  runs, report, tmp_path
):
  out = tmp_path / "page.html"
  workdirs = [runs / name for name in ("seed0", "seed1", "plain")]
  code, printed, err = report("--workdir", *workdirs, "--out", out)
  assert (code, err) == (0, "")
  assert printed.splitlines()[-1] == str(out)
  text, charts = pages.read(out)
  rows = [
    {
      row["step"]: row["val/top1"]
      for line in (runs / name / "metrics.jsonl").read_text().splitlines()
      if "val/top1" in (row := json.loads(line))
    }
    for name in ("seed0", "seed1")
  ]
  top1 = next(chart for chart in charts if chart["id"] == "curve-top1")
  series = {each["name"]["en"]: each for each in top1["series"]}
  both = series["seed0 (+1), evaluation"]
  for (step, mean), (_, low, high) in zip(
    both["points"], both["band"], strict=True
  ):
    values = [each[step] for each in rows]
    assert mean == pytest.approx(np.mean(values))
    assert high - low == pytest.approx(2 * np.std(values, ddof=1))
  assert "band" not in series["plain, evaluation"]
  finals = [100 * each[4] for each in rows]
  spread = f"{np.mean(finals):.2f} ± {np.std(finals, ddof=1):.2f}"
  assert spread in text
  assert "2 seeds end at" in text
  assert text.count("differs") > 1  # model.shortcut, among the keys.


@pytest.fixture
def run(runs, tmp_path):
  pages_of_before = shutil.ignore_patterns("report.html")
  return shutil.copytree(
    runs / "seed0", tmp_path / "run", ignore=pages_of_before
  )


def test_a_run_without_evaluation(run, report):
  metrics = run / "metrics.jsonl"
  metrics.write_text(re.sub('"val/', '"other/', metrics.read_text()))
  code, out, err = report("--workdir", run)
  assert (code, err) == (0, "")
  problem = "metrics.jsonl has no evaluation: the run has not come to its"
  assert out.startswith(f"missing: {problem}")
  text, charts = pages.read(run / "report.html")
  assert problem in text
  assert "reliability" in {chart["id"] for chart in charts}


def test_a_damaged_checkpoint_leaves_the_curves(run, report):
  for file in run.glob("checkpoints/4/state/d/*"):
    file.write_bytes(file.read_bytes()[::-1])
  code, out, err = report("--workdir", run)
  assert (code, err, out.count("\n")) == (0, "", 2)
  text, charts = pages.read(run / "report.html")
  assert "checkpoint is damaged" in text
  assert {chart["id"] for chart in charts} == {
    f"curve-{key}"
    for key in ("top1", "loss", "learning_rate", "images_per_second")
  }


def test_a_class_without_images(measured):
  confusion = measured.mistakes.confusion.copy()
  confusion[3] = 0
  mistakes = dataclasses.replace(measured.mistakes, confusion=confusion)
  text = page.render([dataclasses.replace(measured, mistakes=mistakes)])
  assert "no image" in text
  assert "nan %" not in text


def test_nothing_to_show_is_an_error(run, report):
  shutil.rmtree(run / "checkpoints")
  (run / "metrics.jsonl").unlink()
  code, out, err = report("--workdir", run)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert "has nothing to show: workdir" in err
  assert not (run / "report.html").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("", "the following arguments are required: --workdir"),
    ("--workdir {tmp}", "is not a workdir: it has no config.json"),
    ("--workdir {run} {run}", "--workdir names a run twice"),
    ("--workdir {run} --out {tmp}/a/b.html", "is not a folder: make it first"),
    ("--workdir {run} --out {tmp}", "is a folder: give a file"),
  ],
)
def test_wrong_inputs(report, run, tmp_path, arguments, message):
  code, out, err = report(*arguments.format(run=run, tmp=tmp_path).split())
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert message in err
  assert not (run / "report.html").exists()


def test_a_page_is_whole_or_the_one_before(run):
  out = run / "report.html"
  out.write_text("the one before")
  (run / "config.json").write_text("{")
  with pytest.raises(InputError):
    page.write_report([run], out)
  assert out.read_text() == "the one before"


def test_what_a_name_holds_is_no_markup(measured):
  names = ["<script>alert(1)</script>", *measured.class_names[1:]]
  hostile = dataclasses.replace(
    measured, name="</script><b>", class_names=names
  )
  text = page.render([hostile])
  assert "<script>alert" not in text
  assert "</script><b>" not in text


def test_sentences_are_those_of_the_numbers():
  rows = [
    {"step": 10, "val/top1": 0.5, "val/loss": 2.0, "val/count": 4},
    {"step": 20, "val/top1": 0.75, "val/loss": 0.5, "val/count": 4},
    {"step": 30, "train/top1": 0.9},
    {"step": 30, "val/top1": 0.7, "val/loss": 0.6, "val/count": 4},
  ]
  evaluations = [row for row in rows if "val/top1" in row]
  assert sentences.accuracy(evaluations, rows).en == (
    "Evaluation goes from 50.00% at step 10 to 70.00% at step 30; its best is "
    "75.00% at step 20. It ends 20.0 points below the images of training, as "
    "they are augmented."
  )
  assert "20단계의 75.00%" in sentences.accuracy(evaluations, rows).ko
  assert sentences.loss(evaluations).en == (
    "The evaluation loss is lowest at step 20 (0.5) and ends 20.0% above that "
    "(0.6)."
  )
  counts = np.array([[5, 3, 0], [1, 6, 0], [0, 0, 0]])
  assert sentences.confusion(counts, "abc").en == (
    "The most frequent confusion: “a” taken for “b”, 3 of 8 images and 75% of "
    "all 4 errors."
  )
  accuracies = np.array([5 / 8, 6 / 7, np.nan])
  assert sentences.by_class(accuracies, counts.sum(1), "abc").en == (
    "“a” is recognized least often (62.5% of 8 images), “b” most often (85.7%)."
  )
  assert sentences.accuracy([], rows) is None
  assert sentences.confusion(np.eye(2), "ab").en.startswith("No image")
  assert sentences.confusion(np.ones((2, 2)), "ab").en.startswith("No two of")


def test_groups_are_by_all_but_the_seed(measured):
  config = dict(measured.config)
  others = [
    dataclasses.replace(measured, config={**config, **changes})
    for changes in ({"seed": 7}, {"log_every": 9}, {"batch_size": 32})
  ]
  groups = chart_room.group([measured, *others])
  assert [len(one.runs) for one in groups] == [3, 1]


def test_images_are_read_batch_by_batch(runs, monkeypatch):
  """And no more are kept than are shown."""
  sizes = []
  trained = TrainedRun.load(runs / "seed0")
  batches = trained.run.eval_batches

  def watched(self):
    for batch in batches():
      sizes.append(len(batch["mask"]))
      yield batch

  monkeypatch.setattr(type(trained.run), "eval_batches", watched)
  found = measure("seed0", runs / "seed0", keep=2)
  assert max(sizes) == 64
  kept = [e.mistake.image for e in (*found.errors, *found.unsure)]
  assert len(kept) <= 4
  assert all(image.base is None for image in kept)
