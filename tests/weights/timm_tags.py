"""Writes the table of published weights, from an installed timm.

    python -m tests.weights.timm_tags --results results-imagenet.csv

Last with timm 1.0.31. The results are results/results-imagenet.csv of timm's
repository.
"""

import argparse
from collections.abc import Iterator, Mapping
import csv
import importlib
import pathlib
from typing import Any

from flax_resnet.models import tags
from tests.weights.torch_models import load_torchvision

MODULES = ("resnet", "resnetv2", "resnest")
_HUB = "https://huggingface.co/"
# Columns that come from the results, and not from the package.
FROM_RESULTS = ("top1",)


def rows(results: Mapping[tuple, str]) -> Iterator[dict[str, Any]]:
  """Yields the rows of the table.

  Args:
    results: top-1 by name, size and crop, as `read_results` returns it.
  """
  load_torchvision()
  timm = importlib.import_module("timm")
  for module in MODULES:
    for model in timm.list_models(module=module):
      names = [
        name.removeprefix(f"{model}.")
        for name in timm.list_models(module=module, pretrained=True)
        if name.partition(".")[0] == model
      ]
      default = timm.get_pretrained_cfg(model)
      # timm's order of the tags is by name; its default is the first.
      for tag in sorted(names, key=lambda tag: (tag != default.tag, tag)):
        cfg = timm.get_pretrained_cfg(f"{model}.{tag}")
        yield _row(model, tag, tag == default.tag, cfg, results)
      if not names:
        yield {"model": model}


def _row(
  model: str, tag: str, default: bool, cfg: Any, results: Mapping[tuple, str]
) -> dict[str, Any]:
  name = f"{model}.{tag}"
  size, crop = cfg.input_size[-1], cfg.crop_pct
  test_size = (cfg.test_input_size or cfg.input_size)[-1]
  test_crop = cfg.test_crop_pct or crop
  papers = cfg.paper_ids
  papers = papers if isinstance(papers, str) else " ".join(papers or ())
  return {
    "model": model,
    "tag": tag,
    "default": "yes" if default else "",
    "repository": cfg.hf_hub_id,
    "num_classes": cfg.num_classes,
    "image_size": size,
    "crop_fraction": crop,
    "test_image_size": test_size,
    "test_crop_fraction": test_crop,
    "interpolation": cfg.interpolation,
    "mean": " ".join(map(str, cfg.mean)),
    "std": " ".join(map(str, cfg.std)),
    "license": cfg.license or "",
    "top1": results.get((name, test_size, float(test_crop)), ""),
    "source": cfg.origin_url or papers or cfg.url or f"{_HUB}{cfg.hf_hub_id}",
  }


def read_results(path: pathlib.Path) -> dict[tuple, str]:
  """Returns top-1 in percent by name, size and crop."""
  with path.open(newline="") as file:
    return {
      (row["model"], int(row["img_size"]), float(row["crop_pct"])): row["top1"]
      for row in csv.DictReader(file)
    }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--results", type=pathlib.Path, required=True)
  results = read_results(parser.parse_args().results)
  columns = list(tags.Tag.__dataclass_fields__)
  with tags.TABLE.open("w", newline="") as file:
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(results))


if __name__ == "__main__":
  main()
