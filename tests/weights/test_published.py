"""The published accuracy of akamaster's nets, through the import.

Needs their weights and CIFAR-10, which are not part of this repository: set
FLAX_RESNET_AKAMASTER to the folder of resnet20-12fca82f.th and
resnet56-4bfd9763.th (github.com/akamaster/pytorch_resnet_cifar10) and
FLAX_RESNET_TFDS to a folder with cifar10 prepared.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.recipes import ROOT

WEIGHTS = os.environ.get("FLAX_RESNET_AKAMASTER")
DATA = os.environ.get("FLAX_RESNET_TFDS")


@pytest.mark.slow
@pytest.mark.skipif(
  not (WEIGHTS and DATA), reason="FLAX_RESNET_AKAMASTER, _TFDS are not set"
)
@pytest.mark.parametrize(
  ("model", "file", "errors"),
  [
    ("cifar_resnet20", "resnet20-12fca82f.th", 827),
    ("cifar_resnet56", "resnet56-4bfd9763.th", 661),
  ],
)
def test_the_published_errors(model, file, errors):
  pytest.importorskip("torch")
  command = [
    *(sys.executable, "-m", "flax_resnet", "evaluate", "--json"),
    *("--weights", str(pathlib.Path(str(WEIGHTS)) / file), "--model", model),
    *("--config", "configs/cifar10_resnet20.py"),
    f"--config.data.data_dir={DATA}",
    "--config.augment.mean=(0.485,0.456,0.406)",
    "--config.augment.std=(0.229,0.224,0.225)",
  ]
  result = json.loads(subprocess.check_output(command, cwd=ROOT))
  assert result["val/count"] == 10_000
  assert round(10_000 * (1 - result["val/top1"])) == errors
