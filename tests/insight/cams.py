"""The maps that are compared with those of the package grad-cam."""

from collections.abc import Iterator
import dataclasses
import pathlib

import numpy as np

import flax_resnet as fr
from tests.weights import cases

REFERENCES = pathlib.Path(__file__).with_name("cam_references.npz")
CLASSES = (3, 0, 9)


@dataclasses.dataclass(frozen=True)
class Cam:
  """A map of a case.

  Attributes:
    case: name of a case of `tests.weights.cases`.
    stage: stage of the map; None for the last.
    classes: classes of the three images; None for the predicted ones.
    side: height of the images.
  """

  case: str
  stage: str | None
  classes: tuple[int, ...] | None
  side: int

  @property
  def key(self) -> str:
    return f"{self.case}/{self.stage}/{self.classes is not None}/{self.side}"


def all_cams() -> Iterator[Cam]:
  for case in ("resnet18", "resnet50", "cifar_resnet20", "resnetv2_50"):
    even, odd = cases.CASES[case].sides
    yield Cam(case, None, None, even)
    yield Cam(case, None, CLASSES, odd)
  yield Cam("resnet18", "stage2", CLASSES, 75)


def our_maps(cam: Cam) -> dict[str, np.ndarray]:
  """Returns the maps of both methods, [3, side, side + 4], by its name."""
  case = cases.CASES[cam.case]
  model = case.network()
  variables = fr.from_torch(cases.filled(cases.our_shapes(case)), model)
  arguments = (model, variables, cases.images(cam.side, case.wider))
  methods = {"GradCAM": fr.grad_cam, "GradCAMPlusPlus": fr.grad_cam_plus_plus}
  return {
    name: np.asarray(method(*arguments, cam.classes, cam.stage))
    for name, method in methods.items()
  }
