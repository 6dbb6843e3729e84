"""Grad-CAM: this package and the package grad-cam on PyTorch, in turn.

    pip install torch torchvision grad-cam
    python benchmarks/grad_cam.py    # ResNet-50, 64 images of 224 pixels

Prints images/s: maps of the predicted classes of a batch of normalised images
by random weights. Tests compare the maps themselves.
"""

import argparse
import functools
import os

import numpy as np
from turns import take_turns, Work

# Of our functions, the classes of the other package.
_NAMES = {"grad_cam": "GradCAM", "grad_cam_plus_plus": "GradCAMPlusPlus"}


def _images(count: int, size: int) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, size, size, 3)).astype(np.float32)


def ours(model: str, count: int, size: int, method: str) -> Work:
  import jax

  import flax_resnet as fr

  network = fr.create_model(model)
  images = jax.device_put(_images(count, size))
  variables = jax.jit(functools.partial(network.init, train=False))(
    jax.random.key(0), images[:1]
  )
  explain = getattr(fr, method)

  def work(times: int) -> None:
    for _ in range(times):
      # On the host, as those of the other package.
      np.asarray(explain(network, variables, images))

  return work


def grad_cam(model: str, count: int, size: int, method: str) -> Work:
  import pytorch_grad_cam
  import torch
  import torchvision

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  on_gpu = torch.cuda.is_available()
  device = torch.device("cuda" if on_gpu else "cpu")
  net = getattr(torchvision.models, model)(weights=None).eval().to(device)
  net = net.to(memory_format=torch.channels_last)
  images = torch.from_numpy(_images(count, size)).to(device)
  method_of = getattr(pytorch_grad_cam, _NAMES[method])
  explain = method_of(net, [net.layer4])

  def work(times: int) -> None:
    for _ in range(times):
      explain(images.permute(0, 3, 1, 2), None)

  return work


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="resnet50")
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=5)
  parser.add_argument("--methods", nargs="+", choices=_NAMES, default=_NAMES)
  args = parser.parse_args()
  print("| method | ours, images/s | grad-cam, images/s | ratio |")
  print("|---|--:|--:|--:|")
  for method in args.methods:
    given = (args.model, args.images, args.size, method)
    results = take_turns(
      {
        "ours": functools.partial(ours, *given),
        "grad-cam": functools.partial(grad_cam, *given),
      },
      args.rounds,
      args.seconds,
    )
    for name, result in results.items():
      if result.error:
        raise SystemExit(f"{name}: {result.error}")
    mine, theirs = results["ours"], results["grad-cam"]
    rates = [args.images * each.median for each in (mine, theirs)]
    print(
      f"| {method} | {rates[0]:.1f} | {rates[1]:.1f} | "
      f"{mine.ratio(theirs):.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
