"""configs/digits.py as a script of plain PyTorch: the least that trains it.

    pip install torch
    python benchmarks/torch_digits.py

The same network, digits, batch, number of steps, optimizer, schedule and random
affine maps, and one evaluation at the end; no checkpoints, logs, pictures or
exact restarts. benchmarks/cold_start.py times it beside `train.py`.
"""

import argparse
import math
import os

from sklearn.datasets import load_digits
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
import torch_resnet

NUM_TRAIN = 1437
STEPS, BATCH = 660, 64


def affine(count: int, size: int) -> torch.Tensor:
  """Returns random maps of coordinates, as augment.py draws them."""

  def uniform(limit: float) -> torch.Tensor:
    return (2 * torch.rand(count) - 1) * limit

  angle, shear = uniform(math.radians(15)), uniform(0.2)
  scale = 1 + uniform(0.2)
  cos, sin = angle.cos() / scale, angle.sin() / scale
  rows = [cos, cos * shear - sin, uniform(0.2), sin, sin * shear + cos]
  matrix = torch.stack([*rows, uniform(0.2)], -1).reshape(count, 2, 3)
  return F.affine_grid(matrix, [count, 1, size, size], align_corners=False)


def learning_rate(step: int) -> float:
  rise = round(0.1 * STEPS)
  if step < rise:
    return 0.1 * step / rise
  return 0.05 * (1 + math.cos(math.pi * (step - rise) / (STEPS - rise)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seed", type=int, default=0)
  torch.manual_seed(parser.parse_args().seed)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  pixels, labels = load_digits(return_X_y=True)
  images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
  images = F.interpolate(images, size=(16, 16), mode="bilinear")
  labels = torch.from_numpy(labels)
  model = torch_resnet.ResNet(
    (1, 1, 1), (32, 64, 128), False, True, 10, channels=1
  ).to(memory_format=torch.channels_last)
  kernels = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  optimizer = torch.optim.SGD(
    [{"params": kernels, "weight_decay": 5e-4}, {"params": others}],
    lr=0.1,
    momentum=0.9,
    nesterov=True,
  )
  order = torch.cat([torch.randperm(NUM_TRAIN) for _ in range(30)])
  for step in range(STEPS):
    chosen = order[step * BATCH : (step + 1) * BATCH]
    x = F.grid_sample(images[chosen], affine(BATCH, 16), align_corners=False)
    x = ((x - 0.3) / 0.35).contiguous(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
      group["lr"] = learning_rate(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    if (step + 1) % 60 == 0:
      print(f"step {step + 1}  loss {loss.item():.4f}")
  model.eval()
  with torch.no_grad():
    logits = model((images[NUM_TRAIN:] - 0.3) / 0.35)
  right = (logits.argmax(1) == labels[NUM_TRAIN:]).float().mean()
  print(f"top1 {right:.2%} on {len(labels) - NUM_TRAIN} images")


if __name__ == "__main__":
  main()
