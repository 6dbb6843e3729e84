"""The same ResNets in PyTorch, as torchvision writes them; imports torch."""

from collections.abc import Sequence

import torch
from torch import nn
import torch.nn.functional as F  # noqa: N812 - as everywhere


def conv(
  inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
  return nn.Conv2d(
    inputs, outputs, size, stride, size // 2, groups=groups, bias=False
  )


class Block(nn.Module):
  def __init__(self, inputs, width, stride, bottleneck, identity, groups):
    super().__init__()
    outputs = 4 * width if bottleneck else width
    if groups > 1:  # ResNeXt's 4 channels a group, in the first stage.
      width = width * groups * 4 // 64
    convs = (
      [conv(inputs, width, 1), conv(width, width, 3, stride, groups)]
      if bottleneck
      else [conv(inputs, width, 3, stride)]
    )
    convs.append(conv(width, outputs, 1 if bottleneck else 3))
    self.convs = nn.ModuleList(convs)
    self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convs)
    self.fits = inputs == outputs and stride == 1
    self.stride, self.missing = stride, (outputs - inputs) // 2
    self.projection = None
    if not self.fits and not identity:
      self.projection = nn.Sequential(
        conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
      )

  def forward(self, x):
    f = x
    for number, (c, norm) in enumerate(
      zip(self.convs, self.norms, strict=True), start=1
    ):
      f = norm(c(f))
      if number < len(self.convs):
        f = F.relu(f, inplace=True)
    if self.projection is not None:
      x = self.projection(x)
    elif not self.fits:
      x = x[:, :, :: self.stride, :: self.stride]
      x = F.pad(x, (0, 0, 0, 0, self.missing, self.missing))
    return F.relu(f + x, inplace=True)


class ResNet(nn.Module):
  def __init__(
    self,
    sizes: Sequence[int],
    widths: Sequence[int],
    bottleneck: bool,
    cifar: bool,
    num_classes: int,
    groups: int = 1,
    channels: int = 3,
  ):
    super().__init__()
    inputs = widths[0]
    stem = [
      conv(channels, inputs, 3) if cifar else conv(channels, inputs, 7, 2),
      nn.BatchNorm2d(inputs),
      nn.ReLU(inplace=True),
    ]
    if not cifar:
      stem.append(nn.MaxPool2d(3, 2, 1))
    blocks = []
    for stage, (size, width) in enumerate(zip(sizes, widths, strict=True)):
      for block in range(size):
        stride = 2 if stage and not block else 1
        blocks.append(Block(inputs, width, stride, bottleneck, cifar, groups))
        inputs = 4 * width if bottleneck else width
    self.body = nn.Sequential(*stem, *blocks)
    self.head = nn.Linear(inputs, num_classes)

  def forward(self, x):
    return self.head(self.body(x).mean((2, 3)))


def make_train_step(
  model,
  image,
  label,
  *,
  compiled: bool,
  amp: bool,
  frozen: tuple[str, ...] = (),
):
  """Returns a step without arguments; weight decay as in the other two.

  Modules of `frozen` names are as in evaluation, and need no gradient.
  """
  device = image.device
  model = model.to(device, memory_format=torch.channels_last).train()
  for name in frozen:
    model.get_submodule(name).eval().requires_grad_(False)
  optimizer = torch.optim.SGD(
    [p for p in model.parameters() if p.requires_grad],
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    nesterov=True,
  )
  forward = torch.compile(model) if compiled else model

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
      loss = F.cross_entropy(forward(image), label)
    loss.backward()
    optimizer.step()

  return step
