"""`benchmarks/variants.py`, shortened."""

import runpy

import pytest

from flax_resnet.models import create_model, ResNet
from flax_resnet.schema import build
from flax_resnet.training import load_recipe
from tests.recipes import ROOT

SCRIPT = ROOT / "benchmarks" / "variants.py"
STUDIES = runpy.run_path(str(SCRIPT))["STUDIES"]
SHORT = (
  "num_steps=2",
  "batch_size=64",
  "steps_per_call=1",
  "log_every=1",
  "eval_every=2",
  "checkpoint_every=2",
  "model.stage_sizes=(1,)",
  "model.stage_features=(4,)",
)


@pytest.mark.parametrize("study", STUDIES)
def test_the_recipe_of_every_variant_is_there(study):
  for variant in STUDIES[study].values():
    config = load_recipe(
      ROOT / "configs" / f"{variant.recipe}.py", variant.overrides
    )
    build(
      "config.model", create_model, config.model.to_dict(), fields_of=ResNet
    )


def test_the_table_is_that_of_the_runs(call_main, data_dir, tmp_path):
  """Twice: the second time, what was trained is taken as it is."""
  script = runpy.run_path(str(SCRIPT))
  main = script["main"]
  del script["STUDIES"]["digits_precision"]["bfloat16"]
  flags = [
    "digits_precision",
    "--seeds=1",
    f"--workdir={tmp_path}",
    f"--config.data.data_dir={data_dir}",
    *(f"--config.{text}" for text in SHORT),
  ]
  code, out, err = call_main(main, *flags)
  assert code == 0, err
  rows = [line for line in out.splitlines() if line.startswith("| ")]
  assert [row.split(" | ")[0] for row in rows] == [
    "| variant",
    "| float32",
  ]
  _, top1, each, steps, *_ = rows[1].split(" | ")
  assert top1 == each
  assert 0 <= float(top1) <= 100
  assert steps == "2"
  _, again, _ = call_main(main, *flags)
  assert f"| {top1} | {each} |" in again
  assert "step 1/2" not in again
