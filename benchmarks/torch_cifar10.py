"""configs/cifar10_resnet20_short.py as a script of plain PyTorch.

    pip install torch
    python benchmarks/torch_cifar10.py --data-dir DIR

The same network, batch, number of epochs, augmentation, optimizer and schedule,
and one evaluation at the end; no checkpoints, logs, pictures or exact restarts.
DIR is TFDS's folder, in which `python -m flax_resnet prepare cifar10` has
written the images.
"""

import argparse
import os
import time

import numpy as np
import tensorflow_datasets as tfds
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
import torch_resnet

BATCH, PEAK, WARMUP = 128, 0.2, 0.15
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]


def load(split: str, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns images, normalized [n, 3, 32, 32], and labels."""
  records = list(tfds.data_source("cifar10", split=split, data_dir=folder))
  images = torch.from_numpy(np.stack([r["image"] for r in records]))
  labels = torch.tensor([int(r["label"]) for r in records])
  return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, labels


def augment(images: torch.Tensor) -> torch.Tensor:
  """Mirrors and shifts each image at random."""
  count = len(images)
  flip = torch.rand(count, 1, 1, 1) < 0.5
  padded = F.pad(torch.where(flip, images.flip(3), images), (4,) * 4)
  row, column = torch.randint(9, (2, count, 1, 1))
  rows = row + torch.arange(32)[:, None]
  columns = column + torch.arange(32)
  which = torch.arange(count)[:, None, None]
  return padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)


def learning_rate(step: int, steps: int) -> float:
  rise = round(WARMUP * steps)
  if step < rise:
    return PEAK * step / rise
  return PEAK * (steps - step) / (steps - rise)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--epochs", type=float, default=40)
  parser.add_argument("--data-dir", required=True)
  flags = parser.parse_args()
  torch.manual_seed(flags.seed)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  images, labels = load("train", flags.data_dir)
  model = torch_resnet.ResNet((3, 3, 3), (16, 32, 64), False, True, 10)
  model = model.to(memory_format=torch.channels_last)
  for module in model.modules():
    if isinstance(module, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
  kernels = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  optimizer = torch.optim.SGD(
    [{"params": kernels, "weight_decay": 5e-4}, {"params": others}],
    lr=PEAK,
    momentum=0.9,
    nesterov=True,
  )
  steps = round(flags.epochs * len(labels) / BATCH)
  epochs = [torch.randperm(len(labels)) for _ in range(int(flags.epochs) + 1)]
  order, start = torch.cat(epochs), time.monotonic()
  for step in range(steps):
    chosen = order[step * BATCH : (step + 1) * BATCH]
    x = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
      group["lr"] = learning_rate(step, steps)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), labels[chosen])
    loss.backward()
    optimizer.step()
    if (step + 1) % 125 == 0:
      pace = (step + 1) * BATCH / (time.monotonic() - start)
      print(
        f"step {step + 1}  loss {loss:.4f}  {pace:.0f} images/s", flush=True
      )
  seconds = time.monotonic() - start
  model.eval()
  images, labels = load("test", flags.data_dir)
  with torch.no_grad():
    logits = torch.cat([model(part) for part in images.split(500)])
  right = (logits.argmax(1) == labels).float().mean()
  print(f"top1 {right:.2%} on {len(labels)} images, {seconds:.0f} s of steps")


if __name__ == "__main__":
  main()
