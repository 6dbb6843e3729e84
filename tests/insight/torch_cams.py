"""What the package grad-cam computes: `python -m tests.insight.torch_cams`.

That writes the references, for tests without it: last with grad-cam 1.5.7,
torch 2.13.0, torchvision 0.28.0 and timm 1.0.31 on CPU.
"""

import numpy as np
import torch

from tests.insight import cams
from tests.weights import cases, torch_models, torch_side

torch_models.load_torchvision()  # The package imports it.

import pytorch_grad_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget


def their_maps(cam: cams.Cam) -> dict[str, np.ndarray]:
  """Returns what `cams.our_maps` returns."""
  case = cases.CASES[cam.case]
  net = torch_side.build(case, cases.filled(cases.our_shapes(case)))
  for parameter in net.parameters():
    parameter.requires_grad_(True)
  maps = torch_side.map_modules(net)
  last = max(name for name in maps if name.startswith("stage"))
  # A pre-activation net ends with a norm and an activation.
  if cam.stage is None and hasattr(net, "norm"):
    target = net.norm
  else:
    target = maps[cam.stage or last]
  x = cases.images(cam.side, case.wider).transpose(0, 3, 1, 2).copy()
  targets = cam.classes and [ClassifierOutputTarget(c) for c in cam.classes]
  found = {}
  for name in ("GradCAM", "GradCAMPlusPlus"):
    with getattr(pytorch_grad_cam, name)(net, [target]) as method:
      found[name] = method(torch.from_numpy(x), targets)
  return found


def main() -> None:
  """Writes the references."""
  references = {
    f"{cam.key}/{name}": cases.thinned(found, 500)
    for cam in cams.all_cams()
    for name, found in their_maps(cam).items()
  }
  np.savez_compressed(cams.REFERENCES, **references)
  print(f"{cams.REFERENCES}: {cams.REFERENCES.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
